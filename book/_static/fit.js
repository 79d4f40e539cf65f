// A displayed equation that is wider than its page is drawn smaller, down to a size that can be read;
// what is wider still scrolls in a box. So does a figure that a narrow page would shrink too far.
(function () {
  const LEAST = 0.65, FIGURE = 0.55;

  function keep(image) {
    const box = image.parentElement, width = Math.min(640, FIGURE * image.naturalWidth);
    if (!box.classList.contains("sideways")) {
      if (image.clientWidth === 0 || image.clientWidth >= width) return;
      const around = document.createElement("div");
      around.className = "sideways";
      around.tabIndex = 0; // the arrow keys scroll it
      box.insertBefore(around, image);
      around.append(image);
    }
    image.style.minWidth = width + "px";
  }

  function fit() {
    document.querySelectorAll("article figure > img, article .cell_output img, .sideways > img").forEach(keep);
    document.querySelectorAll("mjx-container:not([display])").forEach((inline) => {
      const room = inline.closest("p, li, td, dd");
      inline.style.fontSize = "";
      const size = inline.getBoundingClientRect().width;
      if (room && room.clientWidth > 0 && size > room.clientWidth) {
        const base = parseFloat(getComputedStyle(inline).fontSize);
        inline.style.fontSize = (base * 0.97 * room.clientWidth) / size + "px";
      }
    });
    for (const equation of document.querySelectorAll("mjx-container[display='true']")) {
      const box = equation.closest("div.math") || equation.parentElement;
      const number = box.querySelector(".eqno");
      equation.style.fontSize = "";
      equation.classList.remove("sideways");
      const math = equation.querySelector("mjx-math") || equation;
      const room = box.clientWidth - (number ? number.offsetWidth + 8 : 0);
      const size = math.getBoundingClientRect().width;
      if (room > 0 && size > room) {
        const base = parseFloat(getComputedStyle(equation).fontSize);
        const share = (0.99 * room) / size;
        equation.style.fontSize = base * Math.max(LEAST, share) + "px";
        equation.classList.toggle("sideways", share < LEAST);
      }
    }
  }

  window.addEventListener("load", () => {
    const ready = (window.MathJax && MathJax.startup && MathJax.startup.promise) || Promise.resolve();
    ready.then(fit);
    // An equation inside something folded has no size before it is opened.
    document.addEventListener("toggle", fit, true);
    document.addEventListener("click", () => setTimeout(fit, 50));
    window.addEventListener("resize", fit);
  });
})();
