// Loads the page again whenever the server says that something has changed, and swaps what differs.
// Nothing is swapped that somebody is using: a form with the focus in it stays as it is.
(() => {
  "use strict";
  if (!window.EventSource || !document.querySelector("[data-live]")) return;
  const AGAIN_MS = 5000;
  const AWAY = "the server does not answer; what is shown may be old";
  const state = document.getElementById("live-state");
  let loading = false;
  let again = false;

  const isUsed = (element) =>
    element.contains(document.activeElement) &&
    /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);

  const swap = (page) => {
    for (const here of document.querySelectorAll("[data-live][id]")) {
      const there = page.getElementById(here.id);
      if (!there || isUsed(here) || here.outerHTML === there.outerHTML) continue;
      const open = new Set([...here.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
      const focused = here.contains(document.activeElement) ? document.activeElement : null;
      const at = focused ? [...here.querySelectorAll("a, button, summary")].indexOf(focused) : -1;
      for (const summary of there.querySelectorAll("details > summary")) {
        if (open.has(summary.textContent)) summary.parentElement.open = true;
      }
      const made = document.importNode(there, true);
      here.replaceWith(made);
      if (at >= 0) made.querySelectorAll("a, button, summary")[at]?.focus({ preventScroll: true });
    }
    document.title = page.title;
  };

  const load = async () => {
    if (loading) { again = true; return; }
    loading = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
      if (answer.ok) {
        swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
        state.textContent = "";
      } else {
        state.textContent =
          answer.type === "opaqueredirect" ? "nobody is signed in any more; what is shown may be old"
          : "the page cannot be loaded now; what is shown may be old";
      }
    } catch {
      state.textContent = AWAY;
    } finally {
      loading = false;
      if (again) { again = false; load(); }
    }
  };

  let source = null;
  const open = () => {
    if (source) return;
    source = new EventSource("/live");
    source.addEventListener("changed", load);
    source.addEventListener("error", () => {
      state.textContent = AWAY;
      if (source?.readyState === EventSource.CLOSED) {  // an answer that is no stream: the browser gives up
        close();
        setTimeout(() => { if (!document.hidden) { open(); load(); } }, AGAIN_MS);
      }
    });
    source.addEventListener("open", () => { state.textContent = ""; });
  };
  const close = () => { source?.close(); source = null; };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : (open(), load())));
  window.addEventListener("pagehide", close);
  open();
})();
