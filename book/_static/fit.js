// A displayed equation that is wider than its page gets a line for each of its parts, and is drawn
// smaller, down to a size that can be read; what is wider still scrolls in a box. So does a figure
// that a narrow page would shrink too far.
(function () {
  const LEAST = 0.65, FIGURE = 0.55;
  const COMPILED = 20; // MathJax's name for "read anew"

  // The parts of an equation: between each \qquad that no brace or environment encloses.
  function parts(tex) {
    const found = [""];
    let depth = 0;
    for (const token of tex.match(/\\(?:begin|end)\b|\\[a-zA-Z]+|\\.|[^\\]/gs) || []) {
      if (token === "{" || token === "\\begin" || token === "\\left") depth += 1;
      if (token === "}" || token === "\\end" || token === "\\right") depth -= 1;
      if (token === "\\qquad" && depth === 0) found.push("");
      else found[found.length - 1] += token;
    }
    return found.filter((part) => part.trim());
  }

  // Below one another where side by side they would not fit, and back where they do again.
  function fold(item, room) {
    const whole = (item.whole ||= { tex: item.math, size: width(item.typesetRoot) });
    const rows = parts(whole.tex), folded = item.math !== whole.tex;
    if (rows.length < 2 || room <= 0 || folded === whole.size > room) return;
    // {}: a bracket that begins a row is no optional argument of the row before.
    item.math = folded ? whole.tex : `\\begin{gathered}{}${rows.join("\\\\{}")}\\end{gathered}`;
    item.rerender(MathJax.startup.document, COMPILED);
  }

  const width = (equation) => (equation.querySelector("mjx-math") || equation).getBoundingClientRect().width;

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

  // No line begins with the full stop of an equation, or ends with its opening bracket.
  function bind(equation) {
    const before = equation.previousSibling, after = equation.nextSibling;
    const open = before && before.nodeType === Node.TEXT_NODE ? /[(\[]$/.exec(before.data) : null;
    const close = after && after.nodeType === Node.TEXT_NODE ? /^[.,;:!?)\]]+/.exec(after.data) : null;
    if (!open && !close) return;
    const whole = document.createElement("span");
    whole.className = "bound";
    equation.before(whole);
    if (close) after.splitText(close[0].length);
    whole.append(...(open ? [before.splitText(open.index)] : []), equation, ...(close ? [after] : []));
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
    for (const item of window.MathJax ? MathJax.startup.document.math : []) {
      if (!item.display) continue;
      const box = item.typesetRoot.closest("div.math") || item.typesetRoot.parentElement;
      const number = box.querySelector(".eqno");
      const room = box.clientWidth - (number ? number.offsetWidth + 8 : 0);
      if (room <= 0) continue; // inside something folded
      item.typesetRoot.style.fontSize = "";
      fold(item, room);
      const equation = item.typesetRoot, size = width(equation);
      equation.classList.remove("sideways");
      if (size > room) {
        const base = parseFloat(getComputedStyle(equation).fontSize);
        const share = (0.99 * room) / size;
        equation.style.fontSize = base * Math.max(LEAST, share) + "px";
        equation.classList.toggle("sideways", share < LEAST);
      }
    }
  }

  window.addEventListener("load", () => {
    const ready = (window.MathJax && MathJax.startup && MathJax.startup.promise) || Promise.resolve();
    ready.then(() => document.querySelectorAll("span.math").forEach(bind)).then(fit);
    // An equation inside something folded has no size before it is opened.
    document.addEventListener("toggle", fit, true);
    document.addEventListener("click", () => setTimeout(fit, 50));
    // The sidebar slides in after the window has changed: it is the article that must be watched.
    const article = document.querySelector("article"); // the search has none
    let seen = 0, soon;
    if (article) new ResizeObserver(([entry]) => {
      if (entry.contentRect.width === seen) return;
      seen = entry.contentRect.width;
      clearTimeout(soon);
      soon = setTimeout(fit, 50);
    }).observe(article);
  });
})();
