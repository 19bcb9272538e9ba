// Draws every chart of a page in the colours of the page and to the width there is, and again when either changes.
(() => {
  "use strict";
  const THEMES = {{ themes | embed }};
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();

  function fit(spec, room, config) {
    config.legend.columns = Math.max(1, Math.min(6, Math.floor(room / 150)));
    if (room < 560) config.axis.labelLimit = 110;
    if (spec.facet && spec.spec) {
      const own = spec.resolve && spec.resolve.scale && spec.resolve.scale.y === "independent";
      const margin = own ? 0 : 70, gap = own ? 80 : 22;
      const most = Math.max(1, Math.floor((room - margin) / (Math.min(150, spec.spec.width) + gap)));
      spec.columns = Math.min(spec.columns || 1, most);
      spec.spec.width = Math.min(1.6 * spec.spec.width, Math.floor((room - margin) / spec.columns) - gap);
    } else if (spec.layer || spec.mark) {
      spec.width = Math.min(room, (typeof spec.width === "number" ? spec.width : 520) + 110);
      spec.autosize = {type: "fit-x", contains: "padding"};
    }
    return spec;
  }

  async function draw(data) {
    const place = document.getElementById(data.dataset.chart);
    const mode = dark.matches ? "dark" : "light";
    const config = structuredClone(THEMES[mode]);
    try {
      const spec = fit(JSON.parse(data.textContent), place.clientWidth, config);
      const before = drawn.get(place);
      const view = await window.vegaEmbed(place, spec, {
        mode: "vega-lite", renderer: "svg", actions: false, config, tooltip: {theme: mode},
      });
      if (before) before.finalize();
      drawn.set(place, view);
      place.dataset.drawn = mode;
    } catch (error) {
      place.dataset.error = String(error);
      place.innerHTML = "<p>This chart could not be drawn.</p>";
      console.error(`${place.id}: ${error}`);
    }
  }

  function all() {
    for (const data of document.querySelectorAll("script[data-chart]")) draw(data);
  }

  let width = window.innerWidth, timer = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(timer);
    timer = setTimeout(all, 150);
  });
  dark.addEventListener("change", all);
  all();
})();
