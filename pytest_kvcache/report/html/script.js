"use strict";
// Draws the charts of the page as they come into view, and hands what a reader chooses to them.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const views = new Map();
  const chosen = new Map();
  const hidden = () => [...document.querySelectorAll('input[name="tier"]:not(:checked)')].map((box) => box.value);
  const holder = (key) => document.querySelector(`div.chart[data-chart="${key}"]`);

  const has = (view, name) => { try { view.signal(name); return true; } catch { return false; } };
  const set = (view, name, value) => (has(view, name) ? view.signal(name, value) : view);

  // Concatenated charts have no width of their container, so each part gets it in pixels.
  const sized = (spec, width) => {
    const room = (part) => ({ ...part, width: Math.max(width, 160) });
    if (spec.encoding && spec.encoding.row) return { ...spec, width: Math.max(width - 20, 160) };
    return spec.vconcat ? { ...spec, vconcat: spec.vconcat.map(room) } : spec;
  };

  const widthOf = (element) => element.clientWidth - 90;

  async function draw(key) {
    const element = holder(key);
    const spec = sized(charts[key].spec, widthOf(element));
    const old = views.get(key);
    element.dataset.width = element.clientWidth;
    const target = document.createElement("div");
    target.style.width = "100%";
    const kept = [...element.childNodes];
    element.append(target);
    try {
      const { view } = await vegaEmbed(target, spec, { renderer: "svg", actions: false, logLevel: 1, tooltip: { theme: "custom" } });
      kept.forEach((node) => node.remove());
      if (old) old.finalize();
      views.set(key, view);
      for (const [name, value] of Object.entries(chosen.get(key) || {})) set(view, name, value);
      await set(view, "hidden", hidden()).runAsync();
      element.dataset.drawn = "yes";
    } catch (error) {
      target.remove();
      element.dataset.drawn = "failed";
      console.error(`chart ${key}:`, error);
    }
  }

  let line = Promise.resolve();
  const wanted = (key) => { line = line.then(() => draw(key)); return line; };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      wanted(entry.target.dataset.chart);
    }
  }, { rootMargin: "400px" });
  for (const key of Object.keys(charts)) seen.observe(holder(key));

  let later;
  window.addEventListener("resize", () => {
    clearTimeout(later);
    later = setTimeout(() => {
      for (const key of views.keys()) if (holder(key).clientWidth !== Number(holder(key).dataset.width)) wanted(key);
    }, 200);
  });
  // Paper gets all charts, also those that were never scrolled to.
  window.addEventListener("beforeprint", () => {
    for (const key of Object.keys(charts)) if (!views.has(key)) wanted(key);
  });

  const choose = (key, name, value) => {
    chosen.set(key, { ...chosen.get(key), [name]: value });
    const view = views.get(key);
    if (view) set(view, name, value).runAsync();
  };

  for (const control of document.querySelectorAll("select[data-chart]"))
    control.addEventListener("change", () => choose(control.dataset.chart, "cell", control.value));

  for (const control of document.querySelectorAll('input[type="range"][data-chart]'))
    control.addEventListener("input", () => {
      const key = control.dataset.chart;
      const [from, to] = ["from_s", "to_s"].map((n) => document.querySelector(`input[data-chart="${key}"][data-signal="${n}"]`));
      const gap = Number(to.max) / 200;
      if (control === from) from.value = Math.min(Number(from.value), Number(to.value) - gap);
      else to.value = Math.max(Number(to.value), Number(from.value) + gap);
      choose(key, "from_s", Number(from.value));
      choose(key, "to_s", Number(to.value));
      document.querySelector(`output[for="${key}"]`).textContent = `${Number(from.value).toFixed(1)} to ${Number(to.value).toFixed(1)} s`;
    });

  for (const box of document.querySelectorAll('input[name="tier"]'))
    box.addEventListener("change", () => { for (const view of views.values()) set(view, "hidden", hidden()).runAsync(); });

  document.querySelectorAll(".controls, .tiers").forEach((each) => { each.hidden = false; });
  window.kvcacheReport = { drawAll: () => Promise.all(Object.keys(charts).filter((k) => !views.has(k)).map(wanted)), views };
})();
