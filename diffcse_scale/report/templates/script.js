"use strict";
// What the pointer is at, in all charts together, and runs that come and go. Without it the page is complete.
(() => {
  const charts = [...document.querySelectorAll("figure.chart")].map((figure) => ({
    figure,
    plot: figure.querySelector("svg.plot"),
    rule: figure.querySelector(".rule"),
    at: figure.querySelector(".at"),
    // a line: its points [step, x, y, text] and the elements that follow the pointer
    lines: JSON.parse(figure.querySelector("script").textContent).map((points, index) => {
      const series = figure.querySelectorAll(".series")[index];
      const value = figure.querySelectorAll(".value")[index];
      const text = value.querySelector("b");
      return { points, series, value, text, last: text.textContent, here: series.querySelector(".here") };
    }),
  }));

  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[1] - x) < Math.abs(best[1] - x) ? point : best));

  function show(x) {
    for (const { rule, at, lines } of charts) {
      const visible = lines.filter((line) => !line.series.classList.contains("off"));
      const found = visible.map((line) => nearest(line.points, x));
      if (!found.length) continue;
      const closest = nearest(found, x);
      at.textContent = "step " + closest[0].toLocaleString("en");
      rule.setAttribute("x1", closest[1]);
      rule.setAttribute("x2", closest[1]);
      rule.removeAttribute("hidden");
      visible.forEach((line, index) => {
        const [step, px, py, text] = found[index];
        const own = step === closest[0];
        line.text.textContent = own ? text : text + " (" + step.toLocaleString("en") + ")";
        line.here.setAttribute("cx", px);
        line.here.setAttribute("cy", py);
        line.here.removeAttribute("hidden");
      });
    }
  }

  function rest() {
    for (const { rule, at, lines } of charts) {
      at.textContent = "last";
      rule.setAttribute("hidden", "");
      for (const line of lines) {
        line.text.textContent = line.last;
        line.here.setAttribute("hidden", "");
      }
    }
  }

  for (const { plot, lines } of charts) {
    const follow = (event) => {
      const box = plot.getBoundingClientRect();
      show(((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width);
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", rest);
    plot.addEventListener("blur", rest);

    const points = lines.reduce((most, line) => (line.points.length > most.length ? line.points : most), []);
    let place = points.length - 1;
    plot.addEventListener("focus", () => { place = points.length - 1; });
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") rest();
      if (!by) return;
      event.preventDefault();
      place = Math.min(points.length - 1, Math.max(0, place + by));
      show(points[place][1]);
    });
  }

  for (const button of document.querySelectorAll("button[data-toggle]")) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      for (const mark of document.querySelectorAll(`.chart [data-run="${button.dataset.toggle}"]`)) {
        mark.classList.toggle("off", off);
      }
    });
  }

  // paper does not open
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
