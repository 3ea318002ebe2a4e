"use strict";
(() => {
  const { palettes, figures } = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const hasMouse = window.matchMedia("(pointer: fine)").matches;
  const plots = Array.from(document.querySelectorAll(".plot"));
  document.documentElement.classList.add("scripted");

  // Only what stands under a key that names a colour is looked up: a class may be called "@frozen".
  const painted = (value, palette, isColor) => {
    if (Array.isArray(value)) return value.map((item) => painted(item, palette, isColor));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, painted(item, palette, /color(scale)?$/.test(key))])
      );
    }
    return isColor && typeof value === "string" && value.startsWith("@") ? palette[value.slice(1)] : value;
  };

  const draw = (element, palette, width) => {
    const { data, layout } = painted(figures[element.dataset.figure], palette, false);
    if (width) layout.width = width;
    const axis = layout.xaxis;
    if (axis.dtick && axis.range) {
      const room = Math.max(2, Math.floor((width || element.clientWidth) / 32));
      axis.dtick = Math.max(axis.dtick, Math.ceil((axis.range[1] - axis.range[0]) / room));
    }
    if (hasMouse && element.classList.contains("square")) layout.dragmode = "zoom";
    if (axis.tickfont && axis.tickfont.size < 13 && element.clientWidth < 560 && !width) {
      axis.showticklabels = layout.yaxis.showticklabels = false;
    }
    return Plotly.react(element, data, layout, { displayModeBar: false, responsive: !width });
  };
  const drawAll = (palette, width) =>
    plots.filter((element) => element.clientWidth).forEach((element) => draw(element, palette, width));
  const current = () => (dark.matches ? palettes.dark : palettes.light);

  drawAll(current());
  // A plot inside a closed fold has no size until it is opened.
  document.querySelectorAll("details").forEach((fold) => {
    fold.addEventListener("toggle", () => {
      fold.querySelectorAll(".plot").forEach((element) => draw(element, current()));
    });
  });
  dark.addEventListener("change", () => drawAll(current()));

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((element) => { element.open = true; });
    drawAll(palettes.light, 680);
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((element) => { element.open = false; });
    drawAll(current());
  });

  const select = (element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
  };
  document.querySelectorAll(".copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        select(source);
        button.textContent = "Selected";
      }
      window.setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });
})();
