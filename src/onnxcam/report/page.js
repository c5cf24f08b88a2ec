"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const { pictures, variants, classes } = report;
  const detects = report.frames !== null; // then boxes are explained, and a picture is of no class
  const $ = (id) => document.getElementById(id);

  /* Every string reaches the page as a text node or an attribute value, never as markup. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }
  const count = (n) => n.toLocaleString("en-US");
  const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;
  const share = (n, of) => (of ? `${((100 * n) / of).toFixed(1)} %` : "");
  /* What a map explains: a class, a target that is none, in words, or boxes. */
  const explainedName = (found) => (found.boxes ? boxNames(found) : found.explained === null ? (found.words ?? "no class") : className(found.explained));
  const className = (index) => (index === null ? "no class" : (classes[index] ?? `class ${index}`));
  const explainedBoxes = (found) => found.boxes.filter((box) => box[4]);
  const explainedClasses = (found) => (found.boxes ? [...new Set(explainedBoxes(found).map((box) => box[0]))] : [found.explained]);
  function boxNames(found) {
    const counts = new Map();
    for (const [index] of explainedBoxes(found)) counts.set(index, (counts.get(index) ?? 0) + 1);
    return [...counts].map(([index, n]) => (n > 1 ? `${n} × ` : "") + className(index)).join(", ") || "no box";
  }
  const bare = (picture) => Boolean(result(picture)?.boxes) && !explainedBoxes(result(picture)).length;
  const theBox = detects ? "the given boxes" : "the box";

  /* ---- what is known of a picture under the chosen method and layer ---- */
  let variant = 0;
  const result = (picture) => (picture.error ? null : picture.results[variant]);
  function verdict(picture) {
    const found = result(picture);
    return !found || found.right === null ? null : found.right ? "right" : "wrong";
  }
  /* Explained, and neither right nor wrong: nothing is expected of it, or no class of the model. */
  const unjudged = (picture) => Boolean(result(picture)) && !verdict(picture);
  const unknownClass = (picture) => ((picture.asked ?? null) === null ? null : `expected ${picture.asked}, unknown to the model`);
  const flagged = (picture) => Boolean(result(picture)?.warnings.length);
  const missesBox = (picture) => result(picture)?.pointing === false;
  const shownScore = (value) =>
    value === null ? (detects ? "" : "?") : report.score === "probability" ? value.toFixed(3) : value.toFixed(2);
  const labelled = pictures.some((picture) => picture.expected !== null);
  const boxed = pictures.some((picture) => picture.results?.some((found) => found && found.pointing !== null));
  const targeted = pictures.some((picture) => picture.results?.some((found) => found && found.explained !== found.predicted));

  /* ---- pictures and maps: parsed a chunk at a time, when first looked at ---- */
  const chunks = new Map();
  function images(index) {
    const number = Math.floor(index / report.chunk);
    let chunk = chunks.get(number);
    if (!chunk) {
      const element = $(`images-${number}`);
      if (!element) return undefined; // not arrived yet
      chunk = JSON.parse(element.textContent);
      if (chunks.size >= 24) chunks.delete(chunks.keys().next().value);
    } else chunks.delete(number);
    chunks.set(number, chunk);
    return chunk[index % report.chunk];
  }
  const webp = (data) => `data:image/webp;base64,${data}`;

  /* 256 colours as the bytes R, G, B, 255 of canvas pixels, four at a time. */
  function coloursOf(data) {
    const rgb = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const rgba = new Uint8Array(1024).fill(255);
    for (let i = 0; i < 256; i++) rgba.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
    return new Uint32Array(rgba.buffer);
  }
  const palettes = Object.fromEntries(Object.entries(report.palettes).map(([name, data]) => [name, coloursOf(data)]));
  let palette = palettes[report.palette];

  /* The 8-bit map, enlarged bilinearly and coloured, in that order, as the library does. */
  async function paint(canvas, data) {
    const image = new Image();
    image.src = webp(data);
    await image.decode();
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const { width, height } = canvas;
    context.drawImage(image, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    const bytes = pixels.data;
    const whole = new Uint32Array(bytes.buffer);
    for (let i = 0; i < whole.length; i++) whole[i] = palette[bytes[4 * i]];
    context.putImageData(pixels, 0, 0);
    canvas.dataset.painted = "";
  }

  /* A picture of w x h with its map over the region that the model saw, fitted into a box of pixels. The map is coloured
     at `dense` times the size that it is shown at, and stretched from there. */
  function stack(image, layer, [w, h], region, [boxWidth, boxHeight], description, dense = 1, boxes = null) {
    const scale = Math.min(boxWidth / w, boxHeight / h);
    const [width, height] = [Math.max(1, Math.round(w * scale)), Math.max(1, Math.round(h * scale))];
    const element = make("span", { class: "stack" });
    const square = boxWidth === boxHeight; // then in shares of it, which holds on paper too
    element.style.width = square ? `${(100 * width) / boxWidth}%` : `${width}px`;
    element.style.height = square ? `${(100 * height) / boxHeight}%` : `${height}px`;
    if (image) element.append(make("img", { src: webp(image), alt: description, decoding: "async" }));
    if (layer?.map) {
      const [x0, y0, x1, y1] = region;
      const canvas = make("canvas", {
        width: Math.max(1, Math.round((dense * width * (x1 - x0)) / w)),
        height: Math.max(1, Math.round((dense * height * (y1 - y0)) / h)),
        "aria-hidden": "true",
      });
      Object.assign(canvas.style, {
        left: `${(100 * x0) / w}%`, top: `${(100 * y0) / h}%`,
        width: `${(100 * (x1 - x0)) / w}%`, height: `${(100 * (y1 - y0)) / h}%`,
      });
      paint(canvas, layer.map).catch(() => canvas.remove());
      element.append(canvas, ...(boxes ?? []).map((box, i) => framed(box, boxes.slice(0, i), [w, h], dense >= 1)));
    } else if (layer?.overlay) {
      element.append(make("img", { src: webp(layer.overlay), alt: "", class: "over", decoding: "async" }));
    }
    return element;
  }

  /* A box over its picture, as an overlay draws it; one that was not explained is left out there, too. Where a box
     before it has its corner at the same place, the name stands a line lower. */
  function framed([index, score, [x0, y0, x1, y1], , explained], before, [w, h], named) {
    if (!explained) return "";
    const inside = (value, end) => Math.min(Math.max(value, 0), end);
    const [left, top, right, bottom] = [inside(x0, w), inside(y0, h), inside(x1, w), inside(y1, h)];
    const element = make("span", { class: "box", "aria-hidden": "true" });
    element.style.setProperty("--box", report.frames[index % report.frames.length]);
    Object.assign(element.style, {
      left: `${(100 * left) / w}%`, top: `${(100 * top) / h}%`,
      width: `${(100 * (right - left)) / w}%`, height: `${(100 * (bottom - top)) / h}%`,
    });
    if (!named) return element;
    const name = make("span", { class: top > 0.06 * h ? "above" : null }, `${before.length} ${className(index)} ${score.toFixed(2)}`);
    const near = before.filter(([, , [x, y], , seen]) => seen && Math.abs(x - x0) < 0.12 * w && Math.abs(y - y0) < 0.04 * h);
    name.style.transform = `translateY(${100 * near.length}%)`;
    element.append(name);
    return element;
  }

  /* ---- filter and sort ---- */
  let shown = [];
  let active = 0; // position in `shown` of the tile that Tab reaches
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const STATES = {
    "": () => true,
    ok: (p) => !p.error && result(p) && !flagged(p),
    flagged,
    missed: missesBox,
    bare,
    error: (p) => Boolean(p.error),
  };
  const ORDERS = {
    order: ["Order of the run", (a, b) => a - b],
    name: ["Name", (a, b) => (pictures[a].name < pictures[b].name ? -1 : 1)],
    high: ["Score, high to low", (a, b) => key(b) - key(a)],
    low: ["Score, low to high", (a, b) => key(a, Infinity) - key(b, Infinity)],
    mistakes: ["Mistakes first, surest first", (a, b) => wrongness(b) - wrongness(a) || key(b) - key(a)],
    class: detects
      ? ["Number of boxes", (a, b) => boxCount(b) - boxCount(a) || key(b) - key(a)]
      : ["Explained class", (a, b) => group(a) - group(b) || key(b) - key(a)],
  };
  const key = (i, missing = -Infinity) => {
    const value = result(pictures[i])?.score ?? null;
    return value === null ? (missing === Infinity ? Number.MAX_VALUE : -Number.MAX_VALUE) : value;
  };
  const wrongness = (i) => (verdict(pictures[i]) === "wrong" ? 1 : 0);
  const boxCount = (i) => (result(pictures[i]) ? explainedBoxes(result(pictures[i])).length : -1);
  const group = (i) => result(pictures[i])?.explained ?? Number.MAX_SAFE_INTEGER;

  function select() {
    const text = $("text").value.trim().toLowerCase();
    const [least, most] = [number("least"), number("most")];
    const wanted = { class: $("class").value, expected: $("expected").value, predicted: $("predicted").value };
    const state = STATES[$("state").value];
    const judged = $("verdict").value;
    shown = [];
    pictures.forEach((picture, index) => {
      const found = result(picture);
      if (text && !picture.name.toLowerCase().includes(text)) return;
      if (wanted.class !== "" && !(found && explainedClasses(found).includes(Number(wanted.class)))) return;
      if (wanted.predicted !== "" && found?.predicted !== Number(wanted.predicted)) return;
      if (wanted.expected !== "" && picture.expected !== Number(wanted.expected)) return;
      if (judged && (judged === "neither" ? !unjudged(picture) : verdict(picture) !== judged)) return;
      if (least !== null && !(found?.score >= least)) return;
      if (most !== null && !(found && found.score !== null && found.score <= most)) return;
      if (!state(picture)) return;
      shown.push(index);
    });
    shown.sort(ORDERS[$("sort").value][1]);
    active = 0;
    const all = pictures.length;
    $("found").textContent = shown.length === all ? plural(all, "picture") : `${count(shown.length)} of ${plural(all, "picture")}`;
    $("nothing").hidden = shown.length > 0;
    clear();
    draw();
  }

  /* ---- the gallery: only the rows on the screen exist ---- */
  const gallery = $("gallery");
  const tiles = new Map(); // position in `shown` -> element
  const GAP = 14;
  const CAPTION = 66;
  let grid = { columns: 1, width: 180, rowHeight: 240 };

  function measure() {
    const total = gallery.clientWidth;
    const columns = Math.max(2, Math.floor((total + GAP) / (176 + GAP)));
    const width = Math.floor((total - GAP * (columns - 1)) / columns);
    grid = { columns, width, rowHeight: width + CAPTION + GAP };
  }
  function clear() {
    for (const tile of tiles.values()) tile.remove();
    tiles.clear();
  }
  function draw() {
    if ($("panel-pictures").hidden || printing) return;
    const rows = Math.ceil(shown.length / grid.columns);
    gallery.style.height = `${Math.max(0, rows * grid.rowHeight - GAP)}px`;
    const top = -gallery.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / grid.rowHeight) - 1) * grid.columns;
    const last = Math.min(shown.length, (Math.ceil((top + window.innerHeight) / grid.rowHeight) + 1) * grid.columns);
    for (const [position, tile] of tiles) {
      if ((position < first || position >= last) && position !== active) {
        tile.remove();
        tiles.delete(position);
      }
    }
    for (let position = first; position < last; position++) place(position);
    if (active < shown.length) place(active);
  }
  function place(position) {
    if (tiles.has(position)) return tiles.get(position);
    const item = tile(position);
    const { columns, width, rowHeight } = grid;
    item.style.width = `${width}px`;
    const [x, y] = [(position % columns) * (width + GAP), Math.floor(position / columns) * rowHeight];
    item.style.transform = `translate(${x}px, ${y}px)`;
    tiles.set(position, item);
    gallery.append(item);
    return item;
  }
  /* Pictures are put into their tiles a few milliseconds per frame, the newest tiles first, so that scrolling never waits. */
  const BUDGET = 5;
  let queue = [];
  function later(frame, index, picture, found) {
    const data = [index, picture, found];
    if (printing) return fillTile(frame, data);
    if (!queue.length) requestAnimationFrame(fillTiles);
    queue.push([frame, data]);
  }
  function fillTile(frame, [index, picture, found]) {
    const data = images(index);
    if (data) frame.append(stack(data[0], data[1][variant], picture.size, found.region, [grid.width, grid.width], "", 0.5, found.boxes));
    else if (data === null) frame.append(make("span", { class: "fault score" }, "not embedded"));
  }
  function fillTiles() {
    const end = performance.now() + BUDGET;
    queue = queue.filter(([frame]) => frame.isConnected);
    while (queue.length && performance.now() < end) fillTile(...queue.pop());
    if (queue.length) requestAnimationFrame(fillTiles);
  }
  function mark(picture) {
    const judged = verdict(picture);
    if (!judged) return null;
    return make("span", { class: judged }, judged === "right" ? "✓ " : "✗ ");
  }
  function tile(position) {
    const index = shown[position];
    const picture = pictures[index];
    const found = result(picture);
    const frame = make("span", { class: "frame" });
    const lines = [make("span", { class: "name", title: picture.name }, picture.name)];
    if (picture.error) {
      frame.append(make("span", { class: "fault" }, picture.error.message));
      lines.push(make("span", { class: "line wrong" }, "not explained"));
    } else if (!found) {
      frame.append(make("span", { class: "fault" }, "not in this run"));
    } else {
      later(frame, index, picture, found);
      lines.push(make("span", { class: "line" }, mark(picture), make("b", {}, explainedName(found)), " ",
        make("span", { class: "score" }, shownScore(found.score)), flagged(picture) ? make("span", { class: "flag" }, " ⚠") : null));
      const aside = [
        verdict(picture) === "wrong" ? make("span", { class: "wrong" }, `expected ${className(picture.expected)}`) : null,
        found.explained === null || found.explained === found.predicted ? null : make("span", { class: "score" }, `predicted ${className(found.predicted)}`),
        flagged(picture) ? make("span", { class: "flag" }, found.warnings[0]) : null,
        unknownClass(picture) ? make("span", { class: "flag" }, unknownClass(picture)) : null,
        missesBox(picture) ? make("span", { class: "flag" }, `peak outside ${theBox}`) : null,
      ].filter(Boolean);
      if (aside.length) lines.push(make("span", { class: "line" }, aside[0]));
    }
    const button = make("button", {
      type: "button", tabindex: position === active ? "0" : "-1", "data-position": position,
      "aria-label": described(picture), "aria-haspopup": "dialog",
    }, frame, lines);
    return make("div", { role: "listitem", class: "tile", "aria-setsize": shown.length, "aria-posinset": position + 1 }, button);
  }
  function described(picture) {
    const found = result(picture);
    if (picture.error) return `${picture.name}: not explained, ${picture.error.message}`;
    if (!found) return `${picture.name}: not in this run`;
    const judged = verdict(picture);
    return [`${picture.name}: ${explainedName(found)}${found.score === null && detects ? "" : `, score ${shownScore(found.score)}`}`,
      found.explained === null || found.explained === found.predicted ? "" : `predicted ${className(found.predicted)}`,
      judged ? (judged === "right" ? "prediction right" : `prediction wrong, expected ${className(picture.expected)}`) : unknownClass(picture),
      ...found.warnings].filter(Boolean).join(", ");
  }
  const buttonAt = (position) => tiles.get(position)?.querySelector("button");
  function focusTile(position) {
    if (!shown.length) return;
    const old = buttonAt(active);
    active = Math.max(0, Math.min(shown.length - 1, position));
    if (old) old.tabIndex = -1;
    const button = place(active).querySelector("button");
    button.tabIndex = 0;
    button.focus({ preventScroll: true });
    const box = button.getBoundingClientRect();
    const bar = $("bar");
    const covered = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight + 8 : 8;
    if (box.top < covered) window.scrollBy(0, box.top - covered);
    else if (box.bottom > window.innerHeight - 8) window.scrollBy(0, box.bottom - window.innerHeight + 8);
    draw();
  }
  gallery.addEventListener("keydown", (event) => {
    const page = grid.columns * Math.max(1, Math.floor(window.innerHeight / grid.rowHeight));
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: grid.columns, ArrowUp: -grid.columns, PageDown: page, PageUp: -page,
      Home: -shown.length, End: shown.length,
    };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    focusTile(active + steps[event.key]);
  });
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    focusTile(Number(button.dataset.position));
    enlarge(active);
  });
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }, { passive: true });
  new ResizeObserver(() => {
    if (printing) return;
    const before = grid.width;
    measure();
    if (before !== grid.width) { clear(); draw(); }
  }).observe(gallery);

  /* ---- the large view ---- */
  const large = $("large");
  let enlarged = 0;
  function enlarge(position) {
    enlarged = position;
    const index = shown[position];
    const picture = pictures[index];
    const found = result(picture);
    $("large-name").textContent = picture.name;
    if (!large.open) large.showModal();
    const frame = $("large-frame");
    frame.replaceChildren();
    if (found) {
      const data = images(index);
      const room = [frame.clientWidth, Math.max(220, window.innerHeight * 0.68)];
      if (data) frame.append(stack(data[0], data[1][variant], picture.size, found.region, room, described(picture), Math.max(1, Math.min(2, window.devicePixelRatio || 1)), found.boxes));
    } else frame.append(make("p", { class: "fault" }, picture.error?.message ?? "not in this run"));
    $("large-opacity").parentElement.hidden = !found;
    $("large-facts").replaceChildren(...facts(picture, found));
    $("previous").disabled = position === 0;
    $("next").disabled = position === shown.length - 1;
  }
  const pairs = (rows, className_) =>
    make("dl", { class: className_ }, rows.filter((row) => row && row[1] !== null && row[1] !== undefined && row[1] !== "")
      .flatMap(([name, value, kind]) => [make("dt", {}, name), make("dd", { class: kind }, value)]));
  function facts(picture, found) {
    if (!found) {
      const why = picture.error ?? {};
      return [make("h3", {}, "Not explained"), pairs([["why", why.message], ["kind", why.kind], ["what to do", why.hint], ["file", picture.path, "mono"]])];
    }
    const judged = verdict(picture);
    const [w, h] = picture.size;
    return [
      ...(found.boxes ? [make("h3", {}, plural(explainedBoxes(found).length, "box", "boxes")), make("ul", { class: "tops" }, found.boxes.map(boxFacts))] : []),
      found.top.length ? make("h3", {}, "Prediction") : null,
      make("ul", { class: "tops" }, found.top.map(([index, score]) =>
        make("li", {}, make("span", {}, className(index)), make("span", { class: "score" }, shownScore(score)),
          report.score === "probability" && score !== null ? make("meter", { min: 0, max: 1, value: score, "aria-hidden": "true" }) : null))),
      judged ? make("p", { class: judged }, judged === "right" ? `✓ as expected: ${className(picture.expected)}` : `✗ expected ${className(picture.expected)}`) : null,
      unknownClass(picture) ? make("p", { class: "flag" }, unknownClass(picture)) : null,
      ...found.warnings.map((warning) => make("p", { class: "flag" }, "⚠ " + warning)),
      make("h3", {}, "Heat map"),
      pairs([
        ["explains", explainedName(found)], ["method", variants[variant].method], ["layer", found.layer, "mono"],
        ["grid", found.grids.map(([y, x]) => `${y} × ${x}`).join(", ")], ["peak", found.boxes ? null : `x ${found.peak[0]}, y ${found.peak[1]}`],
        [`in ${theBox}`, found.energy === null ? null : `${(100 * found.energy).toFixed(1)} % of the map, peak ${found.pointing ? "inside" : "outside"}`],
        ["smoothing", found.smoothing],
      ]),
      make("h3", {}, "Picture"),
      pairs([["size", `${w} × ${h} pixels`],
        ["model saw", found.region.join() === `0,0,${w},${h}` ? "all of it" : `x ${found.region[0]} to ${found.region[2]}, y ${found.region[1]} to ${found.region[3]}`],
        ["file", picture.path, "mono"], ["sha256", picture.sha256, "mono"]]),
    ].filter(Boolean);
  }
  function boxFacts([index, score, edges, peak, explained], place) {
    const [x0, y0, x1, y1] = edges.map(Math.round);
    const colour = make("i", { class: "frame-colour" });
    colour.style.background = report.frames[index % report.frames.length];
    return make("li", {}, make("span", {}, colour, `${place} ${className(index)}`), make("span", { class: "score" }, shownScore(score)),
      make("small", {}, `x ${x0} to ${x1}, y ${y0} to ${y1}`, peak ? `; peak at ${peak[0]}, ${peak[1]}` : explained ? "" : "; not explained"),
      make("meter", { min: 0, max: 1, value: score, "aria-hidden": "true" }));
  }
  $("previous").addEventListener("click", () => enlarged > 0 && enlarge(enlarged - 1));
  $("next").addEventListener("click", () => enlarged < shown.length - 1 && enlarge(enlarged + 1));
  $("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => event.target === large && large.close());
  large.addEventListener("close", () => focusTile(enlarged));
  large.addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;
    if (event.key === "ArrowLeft" && enlarged > 0) enlarge(enlarged - 1);
    else if (event.key === "ArrowRight" && enlarged < shown.length - 1) enlarge(enlarged + 1);
    else return;
    event.preventDefault();
  });

  /* ---- controls ---- */
  const option = (value, text) => make("option", { value }, text);
  function fill(id, entries, first) {
    $(id).replaceChildren(...(first === undefined ? [] : [option("", first)]), ...entries.map(([value, text]) => option(value, text)));
  }
  function tallied(of) {
    const counts = new Map();
    for (const picture of pictures) {
      for (const value of [of(picture)].flat()) if (value !== null && value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    return [...counts].sort((a, b) => (className(a[0]) < className(b[0]) ? -1 : 1)).map(([value, n]) => [value, `${className(value)} (${count(n)})`]);
  }
  function fillChoices() {
    const kept = ["class", "predicted", "expected"].map((id) => $(id).value);
    fill("class", tallied((p) => result(p) && explainedClasses(result(p))), "any");
    fill("predicted", tallied((p) => result(p)?.predicted), "any");
    fill("expected", tallied((p) => p.expected), "any");
    ["class", "predicted", "expected"].forEach((id, i) => { $(id).value = kept[i]; if ($(id).selectedIndex < 0) $(id).value = ""; });
  }
  function setOpacity(percent) {
    document.documentElement.style.setProperty("--opacity", percent / 100);
    for (const id of ["opacity", "large-opacity"]) $(id).value = percent;
    for (const id of ["opacity-shown", "large-shown"]) $(id).textContent = `${percent} %`;
  }
  for (const id of ["opacity", "large-opacity"]) $(id).addEventListener("input", () => setOpacity(Number($(id).value)));
  $("controls").addEventListener("input", (event) => { if (!["opacity", "palette", "variant"].includes(event.target.id)) select(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("reset", () => setTimeout(() => { setOpacity(report.opacity); choosePalette(report.palette); $("variant").value = variant; select(); }));
  function choosePalette(name) {
    palette = palettes[name];
    $("palette").value = name;
    clear();
    draw();
    rebuild();
  }
  $("palette").addEventListener("change", () => choosePalette($("palette").value));
  $("variant").addEventListener("change", () => { variant = Number($("variant").value); fillChoices(); tally(); select(); rebuild(); });
  function filterBy(values) {
    for (const id of ["text", "class", "predicted", "expected", "verdict", "state", "least", "most"]) $(id).value = values[id] ?? "";
    if (Object.keys(values).length) $("filters").open = true;
    open("pictures");
    select();
    $("filters").scrollIntoView({ block: "start" });
    if (shown.length) focusTile(0);
  }

  /* ---- totals ---- */
  function tally() {
    const explained = pictures.filter((p) => result(p));
    const judged = explained.filter((p) => verdict(p));
    const right = judged.filter((p) => verdict(p) === "right").length;
    const boxes = explained.filter((p) => result(p).pointing !== null);
    const entry = (n, text, kind, values) => make("button", { type: "button", class: n ? kind : "", on: { click: () => filterBy(values) } }, make("b", {}, count(n)), make("span", {}, text));
    const wrong = judged.length - right;
    const rated = (n) => share(n, judged.length) + (judged.length < pictures.length ? ` of ${count(judged.length)}` : "");
    $("tally").replaceChildren(...[
      entry(pictures.length, pictures.length === 1 ? "picture" : "pictures", "", {}),
      detects ? entry(explained.reduce((n, p) => n + explainedBoxes(result(p)).length, 0), "boxes", "", {}) : null,
      detects ? entry(explained.filter(bare).length, "without a box", "", { state: "bare" }) : null,
      judged.length ? entry(right, `right, ${rated(right)}`, "right", { verdict: "right" }) : null,
      judged.length ? entry(wrong, `wrong, ${rated(wrong)}`, "wrong", { verdict: "wrong" }) : null,
      labelled && explained.some(unjudged) ? entry(explained.filter(unjudged).length, "no known class expected", "", { verdict: "neither" }) : null,
      boxed ? entry(boxes.filter(missesBox).length, `of ${count(boxes.length)} peaks outside ${theBox}`, "flag", { state: "missed" }) : null,
      entry(explained.filter(flagged).length, "flagged maps", "flag", { state: "flagged" }),
      entry(pictures.filter((p) => p.error).length, "not explained", "wrong", { state: "error" }),
    ].filter(Boolean));
  }

  /* ---- mean maps and confusion ---- */
  const lazily = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      lazily.unobserve(entry.target);
      entry.target.fillFrame();
    }
  }, { rootMargin: "300px" });
  function card(view, lines, values) {
    const frame = make("span", { class: "frame" });
    frame.fillFrame = () => {
      const side = frame.clientWidth || 168;
      if (view?.picture || view?.map) frame.append(stack(view.picture, { map: view.map }, [1, 1], [0, 0, 1, 1], [side, side], ""));
      else frame.append(make("span", { class: "fault" }, "no map"));
    };
    lazily.observe(frame);
    return make("div", { class: "card" }, make("button", { type: "button", on: { click: () => filterBy(values) } }, frame, lines));
  }
  function cards() {
    const seen = new Map();
    for (const picture of pictures) {
      const found = result(picture);
      if (!found) continue;
      if (!seen.has(found.explained)) seen.set(found.explained, []);
      seen.get(found.explained).push(picture);
    }
    const views = report.means[variant];
    $("classes-about").textContent = "The mean of the maps that explain each class, over the mean of their pictures, each stretched to a square; flagged maps are left out. " +
      "A class that is always explained by the same corner may be recognised by something that is not the object. " +
      (views.top ? `The highest colour stands for a mean of ${views.top.toFixed(2)}, the highest of all classes.` : "");
    const sorted = [...seen].sort((a, b) => b[1].length - a[1].length || a[0] - b[0]);
    $("class-cards").replaceChildren(...sorted.map(([index, members]) => {
      const judged = members.filter((p) => verdict(p));
      const right = judged.filter((p) => verdict(p) === "right").length;
      return card(views.classes[index], [make("p", {}, make("b", {}, className(index))),
        make("small", {}, plural(members.length, "picture"), judged.length ? `, ${share(right, judged.length)}${judged.length < members.length ? ` of ${count(judged.length)}` : ""} right` : "")], { class: index });
    }));
  }
  function mistaken() {
    const views = report.means[variant];
    const found = [...mistakes().entries()].sort((a, b) => b[1] - a[1]);
    $("mistakes").replaceChildren(...found.slice(0, 60).map(([pair, n]) => {
      const [expected, predicted] = pair.split(",").map(Number);
      return card(views.pairs[pair], [make("p", {}, make("b", {}, className(expected)), " taken for ", make("b", {}, className(predicted))),
        make("small", {}, plural(n, "picture"))], { expected, predicted });
    }));
    $("mistakes-title").textContent = found.length > 60 ? `The 60 most frequent of ${count(found.length)} kinds of mistake` : found.length ? "Most frequent mistakes" : "No mistakes";
  }
  function mistakes() {
    const counts = new Map();
    for (const picture of pictures) {
      if (verdict(picture) !== "wrong") continue;
      const pair = `${picture.expected},${result(picture).predicted}`;
      counts.set(pair, (counts.get(pair) ?? 0) + 1);
    }
    return counts;
  }
  const WIDEST = 40;
  function confusion() {
    if (!labelled) return;
    const counts = new Map();
    const totals = new Map();
    const errors = new Map();
    for (const picture of pictures) {
      if (!verdict(picture)) continue;
      const [e, p] = [picture.expected, result(picture).predicted];
      counts.set(`${e},${p}`, (counts.get(`${e},${p}`) ?? 0) + 1);
      totals.set(e, (totals.get(e) ?? 0) + 1);
      for (const c of e === p ? [e] : [e, p]) errors.set(c, (errors.get(c) ?? 0) + (e === p ? 0 : 1));
    }
    let involved = [...errors].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([c]) => c);
    const all = involved.length;
    involved = involved.slice(0, WIDEST).sort((a, b) => a - b);
    const left = pictures.filter(unjudged).length;
    $("confusion-about").textContent = "Rows are what the picture was said to be, columns what the model predicted; the tint is the share of the row. " +
      (left ? `Left out, since no known class is expected: ${plural(left, "picture")}. ` : "") +
      (all > WIDEST ? `Of ${count(all)} classes, the ${WIDEST} with the most mistakes are shown. ` : "") + "A number leads to its pictures.";
    const head = make("tr", {}, make("th", { class: "axis" }, "expected ↓ predicted →"),
      involved.map((c) => make("th", { scope: "col", title: className(c) }, make("span", {}, className(c)))), ["all", "right"].map((text) => make("th", { scope: "col", class: "total" }, text)));
    const rows = involved.map((e) => {
      const total = totals.get(e) ?? 0;
      return make("tr", {}, make("th", { scope: "row", title: className(e) }, className(e)), involved.map((p) => {
        const n = counts.get(`${e},${p}`) ?? 0;
        const cell = make("td", { class: n ? null : "none" });
        cell.style.setProperty("--tint", `var(--cell-${e === p ? "right" : "wrong"})`);
        cell.style.setProperty("--share", 0.1 + (0.5 * n) / total);
        if (n) cell.append(make("button", { type: "button", "aria-label": `${plural(n, "picture")} of ${className(e)} predicted as ${className(p)}`,
          on: { click: () => filterBy({ expected: e, predicted: p }) } }, count(n)));
        return cell;
      }), make("td", { class: "total" }, count(total)), make("td", { class: "total" }, share(counts.get(`${e},${e}`) ?? 0, total)));
    });
    $("matrix").replaceChildren(make("table", { class: "matrix" }, make("thead", {}, head), make("tbody", {}, rows)));
  }

  /* ---- metrics ---- */
  const SVG = "http://www.w3.org/2000/svg";
  function drawn(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const HUES = [212, 24, 152, 280, 340, 48, 190, 100];
  const hue = (i) => `hsl(${HUES[i % HUES.length]} 70% ${i < HUES.length ? 48 : 62}%)`;
  function curves(name, methods) {
    const [w, h, left, bottom] = [440, 250, 40, 32];
    const svg = drawn("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${name} curves` });
    const x = (v) => left + v * (w - left - 12);
    const y = (v) => 10 + (1 - v) * (h - bottom - 10);
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(drawn("line", { class: "axis", x1: x(0), x2: x(1), y1: y(tick), y2: y(tick) }),
        drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(2)),
        drawn("text", { x: x(tick), y: h - 14, "text-anchor": "middle" }, `${100 * tick} %`));
    }
    methods.forEach((method, i) => {
      const curve = method.curves?.[name];
      if (!curve) return;
      const points = curve.fraction.map((v, k) => `${x(v).toFixed(1)},${y(Math.max(0, Math.min(1, curve.score[k]))).toFixed(1)}`).join(" ");
      svg.append(drawn("polyline", { points, fill: "none", stroke: hue(i), "stroke-width": 2.2 }));
    });
    const what = { insertion: "Insertion: the probability as the most relevant pixels come back", deletion: "Deletion: the probability as the most relevant pixels go" };
    return make("figure", {}, make("figcaption", {}, what[name]), svg);
  }
  function metrics() {
    const target = $("metrics");
    if (report.localisation) {
      const l = report.localisation;
      target.append(make("h3", {}, "On the boxes"), make("p", { class: "about" }, "Of the maps whose picture has boxes: where is the peak, and how much of the map is inside?"),
        make("div", { class: "scroll" }, make("table", { class: "plain" }, make("thead", {}, make("tr", {}, ["method and layer", "maps", "peak in the box", "of the map in the box"].map((t, i) => make("th", { scope: "col", class: i ? "number" : null }, t)))),
          make("tbody", {}, l.map((row, i) => make("tr", {}, make("th", { scope: "row" }, variants[i].name), make("td", { class: "number" }, count(row.maps)),
            make("td", { class: "number" }, row.pointing === null ? "" : `${(100 * row.pointing).toFixed(1)} %`), make("td", { class: "number" }, row.energy === null ? "" : `${(100 * row.energy).toFixed(1)} %`)))))));
    }
    const evaluation = report.evaluation;
    if (!evaluation) return;
    const cell = (estimate, metric) => {
      if (!estimate || estimate.mean === null) return make("td", { class: "number" }, "");
      const means = evaluation.methods.map((m) => m.metrics[metric.name]?.mean).filter((v) => v !== null && v !== undefined);
      const best = metric.better === "higher" ? Math.max(...means) : Math.min(...means);
      const [low, high] = estimate.interval;
      const interval = low === null ? "" : ` [${low.toFixed(3)} ${high.toFixed(3)}]`;
      return make("td", { class: estimate.mean === best ? "number best" : "number" }, estimate.mean.toFixed(3), make("small", {}, interval));
    };
    target.append(make("h3", {}, "Which method to believe"),
      make("p", { class: "about" }, `As measured by onnxcam evaluate: mean and 95 % interval, best first by ${evaluation.metrics[0]?.name ?? "nothing"}; the best mean of a column is bold.`),
      make("div", { class: "scroll" }, make("table", { class: "plain" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "method"), make("th", { scope: "col", class: "number" }, "maps"),
        evaluation.metrics.map((m) => make("th", { scope: "col", class: "number", title: m.paper }, m.name, m.better === "higher" ? " ↑" : " ↓")))),
        make("tbody", {}, evaluation.methods.map((m) => make("tr", {}, make("th", { scope: "row" }, m.method), make("td", { class: "number" }, count(m.maps - m.empty - m.nan)), evaluation.metrics.map((metric) => cell(m.metrics[metric.name], metric))))))));
    const plots = ["insertion", "deletion"].filter((name) => evaluation.methods.some((m) => m.curves?.[name])).map((name) => curves(name, evaluation.methods));
    if (plots.length) target.append(make("div", { class: "plots" }, plots), make("p", {}, evaluation.methods.map((m, i) => {
      const line = make("i");
      line.style.background = hue(i);
      return make("span", { class: "key" }, line, m.method);
    })));
    for (const text of [...evaluation.warnings, ...evaluation.notes]) target.append(make("p", { class: "about" }, text));
    target.append(make("h3", {}, "How it was measured"), tree({ model: evaluation.model, ...evaluation.settings }));
  }

  /* ---- provenance: any JSON as nested lists ---- */
  function tree(value) {
    if (value === null) return make("span", { class: "mono" }, "none");
    if (Array.isArray(value)) {
      if (value.every((v) => v === null || typeof v !== "object")) return make("span", { class: "mono" }, value.length ? value.map(String).join(", ") : "none");
      return make("div", {}, value.map((v) => make("div", {}, tree(v))));
    }
    if (typeof value === "object") {
      const entries = Object.entries(value);
      return entries.length ? make("dl", {}, entries.flatMap(([name, v]) => [make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, tree(v))])) : make("span", { class: "mono" }, "none");
    }
    return make("span", { class: "mono" }, String(value));
  }
  function provenance() {
    $("provenance").append(...report.provenance.map(([title, value]) => make("section", {}, make("h3", {}, title), tree(value))));
  }

  /* ---- tabs: what is in them is made when they are opened, and again when the method changes ---- */
  const builders = { classes: cards, confusion: () => { confusion(); mistaken(); }, metrics, provenance };
  const stale = new Set(Object.keys(builders));
  function build(part) {
    if (stale.delete(part)) builders[part]();
  }
  function rebuild() {
    stale.add("classes").add("confusion");
    for (const [id] of parts) if (!$(`panel-${id}`).hidden) build(id);
  }
  const parts = [["pictures", "Pictures"], ["classes", "Classes"], ["confusion", "Confusion"], ["metrics", "Metrics"], ["provenance", "Provenance"]]
    .filter(([id]) => (id !== "classes" || !detects) && (id !== "confusion" || (labelled && !detects)) && (id !== "metrics" || report.evaluation || report.localisation));
  for (const section of document.querySelectorAll("main > section")) {
    if (!parts.some(([id]) => section.id === `panel-${id}`)) section.classList.add("absent");
  }
  function open(chosen) {
    for (const [id] of parts) {
      $(`panel-${id}`).hidden = id !== chosen;
      $(`tab-${id}`).setAttribute("aria-selected", String(id === chosen));
      $(`tab-${id}`).tabIndex = id === chosen ? 0 : -1;
    }
    if (chosen === "pictures") { measure(); draw(); }
    build(chosen);
  }
  $("tabs").append(...parts.map(([id, title]) => make("button", { id: `tab-${id}`, type: "button", role: "tab", "aria-controls": `panel-${id}`, on: { click: () => open(id) } }, title)));
  $("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const now = parts.findIndex(([id]) => document.activeElement.id === `tab-${id}`);
    const [id] = parts[(now + step + parts.length) % parts.length];
    open(id);
    $(`tab-${id}`).focus();
    event.preventDefault();
  });

  /* ---- print: what the filters leave, up to a number that a printer can bear ---- */
  const PRINTED = 300;
  let printing = false;
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const [id] of parts) build(id);
    for (let position = 0; position < Math.min(shown.length, PRINTED); position++) place(position);
    if (shown.length > PRINTED) $("found").textContent += `; the first ${PRINTED} are printed`;
    for (const frame of document.querySelectorAll(".card .frame:empty")) frame.fillFrame();
  });
  window.addEventListener("afterprint", () => { printing = false; select(); });

  /* ---- start ---- */
  $("title").textContent = report.title;
  $("subtitle").textContent = report.subtitle;
  $("notices").append(...report.notices.map((text) => make("p", {}, text)));
  fill("palette", Object.keys(palettes).map((name) => [name, name]));
  fill("variant", variants.map((v, i) => [i, v.name]));
  fill("verdict", [["right", "right"], ["wrong", "wrong"], ["neither", "no known class expected"]], "any");
  fill("state", [["ok", "explained, nothing flagged"], ["flagged", "flagged map"], ...(boxed ? [["missed", `peak outside ${theBox}`]] : []), ...(detects ? [["bare", "without a box"]] : []), ["error", "not explained"]], "any");
  fill("sort", Object.entries(ORDERS).filter(([id]) => id !== "mistakes" || labelled).map(([id, [text]]) => [id, text]));
  $("least-name").textContent = detects ? "Best box from" : report.score === "probability" ? "Probability from" : "Score from";
  $("variant-label").hidden = variants.length < 2;
  $("predicted-label").hidden = detects || !(targeted || labelled);
  if (detects) $("class-label").firstChild.textContent = "Class of a box";
  for (const id of ["verdict-label", "expected-label"]) $(id).hidden = !labelled;
  $("filters").open = window.innerWidth > 720;
  $("palette").value = report.palette;
  $("palette").parentElement.hidden = !report.coloured;
  fillChoices();
  setOpacity(report.opacity);
  tally();
  open("pictures");
  select();
  performance.mark("first-render");
  /* The rest of the page is not needed to see the first pictures. */
  document.addEventListener("DOMContentLoaded", () => { clear(); draw(); performance.mark("complete"); });
})();
