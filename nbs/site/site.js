// What the site's pages do by themselves: light or dark, the menu of a phone, copying code, the headings one is at, and the search.
// It asks nobody for anything: the index of the search is a script that lies beside this one, loaded when somebody begins to type.
(() => {
  const up = document.currentScript.dataset.up, root = document.documentElement, $ = (id) => document.getElementById(id);
  const kept = { get() { try { return localStorage.getItem("theme"); } catch { return null; } }, set(v) { try { localStorage.setItem("theme", v); } catch { /* private window */ } } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dress = () => { root.dataset.theme = kept.get() || (system.matches ? "dark" : "light"); };
  dress();
  system.addEventListener("change", dress);

  const fold = (text) => text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  const clean = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  let index = null;
  const load = () => index ? Promise.resolve(index) : new Promise((done, failed) => {
    const script = document.createElement("script");
    Object.assign(script, { src: up + "search-index.js", onerror: failed, onload: () => {
      const { pages, passages } = window.siteIndex;
      index = { pages, passages: passages.map(([page, anchor, heading, api, words]) => ({ page, anchor, heading, api, words, head: fold(heading), title: fold(pages[page][1]), text: fold(words) })) };
      done(index);
    } });
    document.head.append(script);
  });

  // Every word typed must stand somewhere: the name of something counts most, then headings, titles, and words at their beginning.
  const worth = (entry, words) => {
    let sum = 0;
    for (const word of words) {
      let one = 0;
      if (entry.head === word) one = entry.api ? 120 : 90;
      else if (entry.title === word) one = entry.anchor ? 20 : 80;
      else if (entry.head.startsWith(word)) one = entry.api ? 50 : 42;
      else if (entry.head.includes(word)) one = 26;
      else if (entry.title.includes(word)) one = entry.anchor ? 8 : 24;
      const at = entry.text.indexOf(word);
      if (at >= 0) one += /[\p{L}\p{N}_]/u.test(entry.text[at - 1] || " ") ? 2 : 7;
      if (!one) return 0;
      sum += one;
    }
    return sum + (["Start", "How to", "Why", "Reference"].includes(index.pages[entry.page][2]) ? 6 : 0) - Math.min(3, entry.text.length / 800);
  };
  const look = (query) => {
    const words = fold(query).split(/\s+/).filter(Boolean);
    return words.length ? index.passages.map((entry) => [worth(entry, words), entry]).filter(([n]) => n > 0).sort((a, b) => b[0] - a[0]).slice(0, 20).map(([, entry]) => entry) : [];
  };
  const marked = (text, words) => {
    const wanted = words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
    return wanted ? clean(text).replace(new RegExp(wanted, "gi"), "<mark>$&</mark>") : clean(text);
  };
  const piece = (entry, words) => {
    const at = Math.max(0, Math.min(...words.map((w) => entry.text.indexOf(w)).filter((n) => n >= 0), entry.words.length) - 50);
    const from = at >= entry.words.length || at <= 0 ? 0 : entry.words.indexOf(" ", at) + 1;
    return (from ? "… " : "") + entry.words.slice(from, from + 150) + (entry.words.length > from + 150 ? " …" : "");
  };
  const show = (query) => {
    const words = fold(query).split(/\s+/).filter(Boolean), found = look(query);
    $("found").innerHTML = found.map((e, n) => {
      const [place, title, part] = index.pages[e.page];
      const trail = [part, e.anchor ? title : ""].filter(Boolean).map(clean).join(" › ");
      return `<a role="option" aria-selected="${n === 0}" href="${clean(up + place + ".html" + (e.anchor ? "#" + e.anchor : ""))}"><small>${trail}</small><strong>${marked(e.heading, words)}</strong><p>${marked(piece(e, words), words)}</p></a>`;
    }).join("") || (words.length ? `<p class="none">Nothing says “${clean(query)}”.</p>` : "");
    $("found").scrollTop = 0;
  };
  const open = () => { if (!$("search").open) { $("search").showModal(); $("query").select(); } load().then(() => show($("query").value)); };
  const step = (by) => {
    const all = [...$("found").querySelectorAll("a")], now = all.findIndex((a) => a.getAttribute("aria-selected") === "true");
    const next = all[(now + by + all.length) % all.length];
    if (!next) return;
    all.forEach((a) => a.setAttribute("aria-selected", a === next));
    next.scrollIntoView({ block: "nearest" });
  };

  addEventListener("DOMContentLoaded", () => {
    $("theme").onclick = () => { kept.set(root.dataset.theme === "dark" ? "light" : "dark"); dress(); };
    $("menu").onclick = () => { $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("menu-open"))); };
    $("find").onclick = open;
    $("query").oninput = () => load().then(() => show($("query").value));
    $("search").onclick = (e) => { if (e.target === $("search") || e.target.closest("a")) $("search").close(); };
    $("search").onkeydown = (e) => {
      if (e.key === "ArrowDown" || e.key === "ArrowUp") { e.preventDefault(); step(e.key === "ArrowDown" ? 1 : -1); }
      if (e.key === "Enter") { e.preventDefault(); $("found").querySelector("[aria-selected=true]")?.click(); }
    };
    addEventListener("keydown", (e) => {
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
      if ((e.key === "/" && !typing && !e.ctrlKey && !e.metaKey) || (e.key === "k" && (e.ctrlKey || e.metaKey))) { e.preventDefault(); open(); }
    });
    for (const block of document.querySelectorAll(".code:not([data-language=text])")) {
      const button = Object.assign(document.createElement("button"), { className: "copy", textContent: "copy", type: "button" });
      button.onclick = () => navigator.clipboard.writeText(block.querySelector("code").innerText).then(() => { button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1200); });
      block.append(button);
    }
    document.querySelector(".pages [aria-current=page]")?.scrollIntoView({ block: "center" });
    scrollTo(0, location.hash ? scrollY : 0);
    const ways = new Map([...document.querySelectorAll(".inside a")].map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { ways.forEach((a) => a.classList.remove("on")); ways.get(entry.target.id)?.classList.add("on"); }
    }, { rootMargin: "-60px 0px -75% 0px" });
    ways.forEach((_, id) => { const heading = $(id); if (heading) seen.observe(heading); });
  });
})();
