{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // A heading sorts its table: first the largest numbers, or the first names.
  const text = cell => {
    const copy = cell.cloneNode(true);
    for (const hidden of all(".vh, .sd", copy)) hidden.remove();
    return copy.textContent.trim();
  };
  const sortBody = (body, column, numbers, down) => {
    const value = row => row.cells[column].dataset.v;
    const compare = (a, b) => numbers
      ? (value(a) === undefined || value(b) === undefined ? 0 : value(a) - value(b))
      : text(a.cells[column]).localeCompare(text(b.cells[column]));
    // What has no number stays last, whatever the direction.
    const last = row => numbers && value(row) === undefined;
    body.append(...[...body.rows].sort((a, b) =>
      last(a) - last(b) || (down ? compare(b, a) : compare(a, b))));
  };
  for (const head of all(".tablebox thead th")) {
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table"), column = head.cellIndex;
      const numbers = all("tbody tr", table).some(row => row.cells[column].dataset.v !== undefined);
      const now = head.getAttribute("aria-sort");
      const down = numbers ? now !== "descending" : now === "ascending";
      for (const body of table.tBodies) sortBody(body, column, numbers, down);
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.classList.add("sorted");
    });
  }

  // A table as CSV, with exact numbers; deviations over seeds in columns of their own.
  const quote = value => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const asCsv = table => {
    const rows = all("tbody tr", table), heads = [...table.tHead.rows[0].cells];
    const spread = heads.map((_, k) => rows.some(row => row.cells[k].dataset.sd !== undefined));
    const line = (cells, first, second) => cells.flatMap((cell, k) =>
      spread[k] ? [first(cell), second(cell)] : [first(cell)]).map(quote).join(",");
    const missing = value => value === "–" ? "" : value;
    const heading = cell => cell.textContent.trim();
    const lines = rows.map(row => line([...row.cells],
      cell => cell.dataset.v ?? missing(text(cell)), cell => cell.dataset.sd ?? ""));
    return [line(heads, heading, cell => `${heading(cell)} sd`), ...lines].join("\n") + "\n";
  };
  for (const button of all(".csv")) {
    button.addEventListener("click", () => {
      const table = button.closest(".tablebox").querySelector("table");
      const name = table.caption.textContent.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([asCsv(table)], { type: "text/csv" }));
      link.download = `${name}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  // A hint where a table is wider than its place.
  const watch = new ResizeObserver(entries => {
    for (const { target } of entries) {
      const wider = target.scrollWidth > target.clientWidth + 1;
      target.closest(".tablebox").classList.toggle("more", wider);
    }
  });
  for (const area of all(".tablebox .scroll")) watch.observe(area);

  // The contents are open beside the page, and folded above it.
  const contents = document.querySelector(".toc details");
  const wide = matchMedia("(min-width: 1100px)");
  const fold = () => { contents.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
  const links = new Map(all(".toc a").map(link => [link.hash.slice(1), link]));
  const mark = id => {
    for (const [name, link] of links) {
      if (name === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  const places = all("main [id]").filter(place => links.has(decodeURIComponent(place.id)) || links.has(place.id));
  let waiting = false;
  const follow = () => {
    waiting = false;
    const passed = places.filter(place => place.getBoundingClientRect().top < innerHeight / 3);
    mark(passed.length ? passed.at(-1).id : "content");
  };
  addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(follow); } }, { passive: true });
  follow();

  // A link into a folded part opens it.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  };
  addEventListener("hashchange", reveal);

  // On paper nothing can be opened.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => closed.forEach(details => { details.open = false; }));
}
