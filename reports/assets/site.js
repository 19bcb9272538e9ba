// Draws every chart of a page in the colours of the page and to the width there is, and again when either changes.
(() => {
  "use strict";
  const THEMES = {"light": {"background": "transparent", "font": "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif", "padding": 4, "view": {"stroke": null}, "axis": {"labelColor": "#1b1f27", "titleColor": "#1b1f27", "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500, "titlePadding": 8, "labelLimit": 260, "gridColor": "#e4e7ec", "domainColor": "#596273", "tickColor": "#596273"}, "header": {"labelColor": "#1b1f27", "titleColor": "#1b1f27", "labelFontSize": 13, "titleFontSize": 13, "labelFontWeight": 600}, "legend": {"labelColor": "#1b1f27", "titleColor": "#1b1f27", "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500, "orient": "top", "columns": 4, "symbolSize": 80, "labelLimit": 260, "columnPadding": 18, "gradientLength": 220}, "title": {"anchor": "start", "color": "#1b1f27", "subtitleColor": "#596273", "fontSize": 15, "fontWeight": 600, "subtitleFontSize": 12, "subtitlePadding": 5, "offset": 12}, "text": {"color": "#1b1f27", "fontSize": 11}, "range": {"category": ["#004f86", "#a84300", "#00855e", "#c85c9e", "#bd8407", "#3399dd"]}, "style": {"theory": {"color": "#596273", "strokeWidth": 2}, "region": {"color": "#596273", "opacity": 0.2}, "missing": {"color": "#596273", "opacity": 0.3}}}, "dark": {"background": "transparent", "font": "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif", "padding": 4, "view": {"stroke": null}, "axis": {"labelColor": "#e8eaee", "titleColor": "#e8eaee", "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500, "titlePadding": 8, "labelLimit": 260, "gridColor": "#2c323b", "domainColor": "#a5adba", "tickColor": "#a5adba"}, "header": {"labelColor": "#e8eaee", "titleColor": "#e8eaee", "labelFontSize": 13, "titleFontSize": 13, "labelFontWeight": 600}, "legend": {"labelColor": "#e8eaee", "titleColor": "#e8eaee", "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500, "orient": "top", "columns": 4, "symbolSize": 80, "labelLimit": 260, "columnPadding": 18, "gradientLength": 220}, "title": {"anchor": "start", "color": "#e8eaee", "subtitleColor": "#a5adba", "fontSize": 15, "fontWeight": 600, "subtitleFontSize": 12, "subtitlePadding": 5, "offset": 12}, "text": {"color": "#e8eaee", "fontSize": 11}, "range": {"category": ["#0f7bbb", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]}, "style": {"theory": {"color": "#a5adba", "strokeWidth": 2}, "region": {"color": "#a5adba", "opacity": 0.2}, "missing": {"color": "#a5adba", "opacity": 0.3}}}};
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
