"use strict";
// Reads the page, draws nothing that is not in it: filter, order, keyboard, what a cell has to say, and how old it all is.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const grid = $("grid"), tip = $("tip"), form = $("filter"), dialog = $("details");
  const rows = [...grid.querySelectorAll("tbody tr[data-i]")];
  const STALE_DAYS = 2, FIRST_STAGE = 3, TIP_LENGTH = 700;
  const WORDS = { f: "failed here", n: "not reached", o: "not in the recipe" };

  // How old: only the reader's clock knows.
  const hours = (Date.now() - Date.parse(document.body.dataset.started)) / 36e5;
  const age = hours < 1 ? "less than an hour ago" : hours < 48 ? `${Math.floor(hours)} h ago` : `${Math.floor(hours / 24)} days ago`;
  $("age").textContent = `(${age})`;
  if (hours > STALE_DAYS * 24) {
    $("stale").textContent = `This sweep is ${Math.floor(hours / 24)} days old. A sweep runs every night: ` +
      "either the later ones did not run, or this is not the latest page.";
    $("stale").hidden = false;
  }

  // Filter. Its state is in the address, so that a filtered view can be sent to someone.
  const words = rows.map((row) => {
    const cell = data.cells[row.dataset.i];
    const recipe = row.parentNode.dataset.recipe;
    return [row.cells[0].textContent, recipe, row.cells[1].textContent, row.cells[2].textContent,
      cell ? `${cell[3]} ${data.messages[cell[2]]}` : ""].join(" ").toLowerCase();
  });
  const fits = (row, i, f) =>
    f.text.toLowerCase().split(/\s+/).every((word) => words[i].includes(word)) &&
    (!f.recipe || row.parentNode.dataset.recipe === f.recipe) &&
    (!f.family || row.cells[1].textContent === f.family) &&
    (!f.status || row.dataset.t.split(" ").includes(f.status)) &&
    (!f.error || row.dataset.e === f.error);
  function apply(remember = true) {
    const f = Object.fromEntries(new FormData(form));
    let shown = 0;
    rows.forEach((row, i) => { row.hidden = !fits(row, i, f); shown += !row.hidden; });
    for (const body of grid.tBodies) body.hidden = ![...body.rows].some((row) => row.dataset.i && !row.hidden);
    $("shown").textContent = shown === rows.length ? `${shown} cells` : `${shown} of ${rows.length} cells`;
    $("none").hidden = shown > 0;
    const kept = new URLSearchParams(Object.entries(f).filter(([, value]) => value));
    // A frame without an address of its own (MLflow's viewer) refuses; the filter works all the same.
    if (remember) try { history.replaceState(null, "", kept.size ? `#?${kept}` : "#"); } catch { /* as said */ }
    here = null;
    rove();
  }
  const set = (values) => { for (const input of form.elements) if (input.name) input.value = values[input.name] ?? ""; };
  form.addEventListener("input", () => apply());
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-error]");
    if (button) { set({ error: button.dataset.error }); apply(); $("map").scrollIntoView(); }
    const link = event.target.closest('a[href^="#cell-"]');
    // A row that the filter hides cannot be jumped to.
    if (link && document.getElementById(link.hash.slice(1))?.hidden) { set({}); apply(false); }
  });

  // Order by a column, within each recipe; a second click turns it round.
  const value = (row, column) => {
    const text = row.cells[column].textContent.replace("\u2717 ", "");
    const number = Number.parseFloat(text);
    return column < FIRST_STAGE ? text : Number.isNaN(number) ? -Infinity : number;
  };
  grid.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const column = head.cellIndex;
    const down = head.ariaSort ? head.ariaSort === "ascending" : column >= FIRST_STAGE;
    for (const other of grid.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of grid.tBodies) {
      const own = [...body.rows].filter((row) => row.dataset.i).map((row) => [value(row, column), row]);
      own.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
      body.append(...own.map(([, row]) => row));
    }
  });

  // Keyboard: the grid is one stop of the Tab key, the arrows move inside.
  let here = null;
  function rove(cell) {
    cell ??= rows.find((row) => !row.hidden)?.cells[0];
    if (here) here.tabIndex = -1;
    here = cell ?? null;
    if (here) here.tabIndex = 0;
  }
  const visible = () => [...grid.querySelectorAll("tbody tr[data-i]:not([hidden])")];
  grid.addEventListener("keydown", (event) => {
    const cell = event.target.closest("tbody td, tbody th");
    if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" && event.target === cell) {
      event.preventDefault(); // or the same key would press the button that the dialog puts the focus on
      tell(cell.parentNode);
    }
    if (event.key === "Escape") tip.hidden = true;
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], PageDown: [15, 0],
      PageUp: [-15, 0], Home: [0, -99], End: [0, 99] }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = visible(), at = all.indexOf(cell.parentNode);
    const row = all[Math.min(all.length - 1, Math.max(0, at + step[0]))];
    const next = row.cells[Math.min(row.cells.length - 1, Math.max(0, cell.cellIndex + step[1]))];
    rove(next);
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  });

  grid.addEventListener("click", (event) => {
    const cell = event.target.closest("tbody td, tbody th[scope=row]");
    if (!cell || event.target.closest("a")) return;
    rove(cell);
    tell(cell.parentNode);
  });

  // What a cell has to say: a line or two on hover and focus, all of it on Enter or a click.
  const name = (row) => `${row.cells[0].textContent}/${row.parentNode.dataset.recipe}`;
  const unit = (value, form) => (value === null ? "" : `${value} ${form}`);
  function brief(cell) {
    const row = cell.parentNode, found = data.cells[row.dataset.i], at = cell.cellIndex - FIRST_STAGE;
    if (!found) return `${name(row)}\nwas requested but has no result`;
    const message = `${found[3] ? `${found[3]}: ` : ""}${data.messages[found[2]]}`;
    const cut = message.length > TIP_LENGTH ? `${message.slice(0, TIP_LENGTH)}\u2026` : message;
    const stage = data.stages[at];
    if (!stage) return `${name(row)}: ${row.cells[2].firstChild.textContent.trim()}${row.dataset.e ? `\n${cut}` : ""}`;
    const figures = [unit(found[0][at], "CPU-s"), unit(found[1][at], "GiB resident at most")].filter(Boolean).join(", ");
    const said = `${name(row)}\n${stage}: ${WORDS[cell.className] ?? "passed"}${figures ? `, ${figures}` : ""}`;
    return cell.className === "f" ? `${said}\n${cut}` : said;
  }
  function show(event) {
    const cell = event.target.closest?.("#grid tbody td, #grid tbody th[scope=row]");
    if (!cell) return;
    tip.textContent = brief(cell);
    tip.hidden = false;
    cell.setAttribute("aria-describedby", "tip");
    const box = cell.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const below = box.bottom + 8 + own.height < innerHeight;
    tip.style.top = `${below ? box.bottom + 8 : Math.max(4, box.top - own.height - 8)}px`;
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - own.width - 12))}px`;
  }
  function hide(event) {
    tip.hidden = true;
    event.target.closest?.("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
  }
  grid.addEventListener("mouseover", show);
  grid.addEventListener("focusin", show);
  grid.addEventListener("mouseout", hide);
  grid.addEventListener("focusout", hide);

  function make(tag, text, ...children) {
    const element = document.createElement(tag);
    if (text !== null) element.textContent = text;
    element.append(...children);
    return element;
  }
  const line = (...texts) => make("tr", null, ...texts.map((text, i) => make(i ? "td" : "th", text ?? "")));
  function tell(row) {
    const found = data.cells[row.dataset.i], body = dialog.lastElementChild;
    tip.hidden = true;
    $("details-title").textContent = name(row);
    body.replaceChildren(make("p", found ? row.cells[2].textContent.replace("\u2197", "") : "Asked for, and left no result."));
    const repro = row.querySelector("a.repro");
    if (repro) body.firstChild.append(" ", repro.cloneNode(true));
    if (repro) body.firstChild.lastChild.textContent = `script that shows it: ${decodeURI(repro.getAttribute("href"))}`;
    const run = row.querySelector("a.run");
    if (run) body.firstChild.append(" ", run.cloneNode(true));
    if (run) body.firstChild.lastChild.textContent = "MLflow run";
    if (found) {
      const message = data.messages[found[2]];
      if (message) body.append(make("pre", `${found[3] ? `${found[3]}: ` : ""}${message}`));
      const stages = data.stages.map((stage, i) =>
        line(stage, WORDS[row.cells[FIRST_STAGE + i].className] ?? "passed", unit(found[0][i], "s"), unit(found[1][i], "GiB")));
      const facts = data.facts.map((fact, i) => [fact, found[4][i]]).filter(([, figure]) => figure !== null);
      body.append(make("div", null, make("table", null, ...stages),
        make("table", null, ...facts.map(([fact, figure]) => line(fact, figure.toLocaleString("en", { maximumSignificantDigits: 6 }))))));
      body.lastChild.className = "pair";
    }
    dialog.showModal();
  }
  dialog.addEventListener("close", () => here?.focus());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  if (location.hash.startsWith("#?")) set(Object.fromEntries(new URLSearchParams(location.hash.slice(2))));
  apply(false);
})();
