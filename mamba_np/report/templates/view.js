// The page: which token and which layer are chosen, and what is shown of them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const labels = data.labels, length = labels.length, layers = data.layers;
  const byId = (id) => document.getElementById(id);
  const open = (name) => (data[name] ? unpack(data[name]) : null);
  const colour = open("colour"), write = open("write"), keep = open("keep"), read = open("read");
  const decay = open("decay"), predicted = open("predicted");
  const probabilities = open("probabilities"), next = open("next");
  const triangles = data.attention ? data.attention.map((layer) => unpack(layer).values) : null;
  const meanTriangle = triangles ? meanOf(triangles) : null;
  const tokens = Array.from(document.querySelectorAll(".token"));
  const state = { token: 0, row: -1 };

  // --- making elements: text is only ever set as text ---

  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  function drawn(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function bar(share) {
    const filled = make("span");
    filled.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
    const element = make("span", "bar", filled);
    element.setAttribute("aria-hidden", "true");
    return element;
  }

  function heading(text, scope) {
    const element = make("th", "", text);
    element.scope = scope;
    return element;
  }

  function table(caption, columns, rows) {
    const head = make("tr", "", ...columns.map((text) => heading(text, "col")));
    const element = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
    element.setAttribute("aria-label", caption);
    return element;
  }

  function fill(id, ...children) {
    const body = byId(id);
    if (body) body.replaceChildren(...children);
  }

  const nameOf = (token) => `${token} ${labels[token]}`;
  const rowClass = (row) => (row === state.row ? "picked" : "");

  // --- the panels ---

  function showColours() {
    if (!colour) return;
    const values = state.row < 0 ? geometricMean(colour) : rowOf(colour, state.row);
    const { levels, low, high } = scaleOf(values);
    tokens.forEach((token, t) => {
      token.style.setProperty("--v", levels[t].toFixed(3));
      token.title = `${t}: delta ${short(values[t])}`;
    });
    byId("low").textContent = short(low);
    byId("high").textContent = short(high);
  }

  function showChosen() {
    const t = state.token, where = state.row < 0 ? "" : `, layer ${layers[state.row]}`;
    let text = `Token ${t}: ${labels[t]}${where}`;
    if (colour) {
      const values = state.row < 0 ? geometricMean(colour) : rowOf(colour, state.row);
      const above = values.filter((value) => value > values[t]).length;
      const rank = above === 0 ? "the largest" : `larger in ${above}`;
      text += ` – delta ${short(values[t])}, ${rank} of ${length} tokens`;
    }
    byId("chosen").textContent = text;
  }

  function showStrengths() {
    if (!write) return;
    const cell = (array, row, text) => {
      const values = rowOf(array, row), value = values[state.token];
      const most = values.reduce((a, b) => Math.max(a, b), 0);
      return make("td", "", text(value), bar(value / most));
    };
    const rows = layers.map((layer, row) => make("tr", rowClass(row), heading(layer, "row"),
      cell(colour, row, short), cell(write, row, short),
      cell(keep, row, percent), cell(read, row, short)));
    fill("strengths", table("What each layer did with the token",
      ["Layer", "Delta", "Written", "Kept", "Read"], rows));
  }

  function showDecay() {
    if (!decay) return;
    const curves = layers.map((_, row) => curveOf(decay, row, state.token));
    const picked = state.row < 0 ? meanCurve(curves) : curves[state.row];
    const [left, top, width, height] = [38, 8, 300, 110], lags = data.lags;
    const x = (k) => left + (width * k) / Math.max(1, lags.length - 1);
    const y = (share) => top + height * (1 - share);
    const line = (curve, name) => drawn("polyline", { class: name, points: curve
      .map((share, k) => [share, k]).filter(([share]) => !Number.isNaN(share))
      .map(([share, k]) => `${x(k).toFixed(1)},${y(share).toFixed(1)}`).join(" ") });
    const marks = [0, 0.5, 1].flatMap((share) => [
      drawn("line", { class: "axis", x1: left, x2: left + width, y1: y(share), y2: y(share) }),
      drawn("text", { x: left - 5, y: y(share) + 4, "text-anchor": "end" }, percent(share)
        .replace("0.0", "0"))]);
    const ticks = lags.map((lag, k) =>
      drawn("text", { x: x(k), y: top + height + 15, "text-anchor": "middle" }, String(lag)));
    const words = lifeOf(picked, lags);
    const title = drawn("text", { x: left + width, y: top + height + 30, "text-anchor": "end" },
      "tokens later");
    const picture = drawn("svg", { viewBox: "0 0 350 152", role: "img", "aria-label": words },
      ...marks, ...ticks, title, ...curves.map((curve) => line(curve, "curve")),
      line(picked, "curve picked"));
    const which = state.row < 0 ? "Mean over layers" : `Layer ${layers[state.row]}`;
    fill("decay", picture, make("p", "", `${which}: ${words}`));
  }

  function showAttention() {
    if (!triangles) return;
    const triangle = state.row < 0 ? meanTriangle : triangles[state.row];
    const readers = readersOf(triangle, length, state.token), reads = readBy(triangle, state.token);
    const list = (title, pairs, name, none) => {
      const found = largest(pairs, 8), most = found.length ? found[0][1] : 1;
      const rows = found.map(([token, value]) => make("tr", "",
        heading(token === state.token ? `${nameOf(token)} (itself)` : nameOf(token), "row"),
        make("td", "", short(value), bar(value / most))));
      const shown = found.length ? table(title, ["Token", "Attention"], rows) : make("p", "", none);
      return make("div", name, make("h4", "", title), shown);
    };
    const which = state.row < 0 ? "the mean of all layers" : `layer ${layers[state.row]}`;
    fill("attention", make("div", "lists",
      list("It reads", reads, "reads", "Nothing."),
      list("Read by", readers, "read-by", "No later token.")), make("p", "", `In ${which}.`));
    const strongest = (pairs) => pairs.reduce((most, [, value]) => Math.max(most, value), 0) || 1;
    const most = [strongest(reads.slice(0, -1)), strongest(readers)];
    tokens.forEach((token, t) => {
      const later = t > state.token, value = later ? readers[t - state.token - 1][1]
        : t < state.token ? reads[t][1] : 0;
      token.classList.toggle("reader", later);
      token.classList.toggle("read", t < state.token);
      token.style.setProperty("--mark", Math.sqrt(value / most[later ? 1 : 0]).toFixed(2));
    });
  }

  function showPredictions() {
    if (!predicted) return;
    const count = predicted.shape[2], wanted = next.values[state.token] - 1;
    const rows = layers.map((layer, row) => {
      const start = (row * length + state.token) * count, guesses = [];
      for (let i = start; i < start + count; i++) {
        const place = predicted.values[i], name = make("b", "", data.names[place]);
        const guess = make("span", place === wanted ? "right" : "", name, " ",
          make("small", "", percent(probabilities.values[i])));
        if (place === wanted) guess.setAttribute("aria-label",
          `${data.names[place]} ${percent(probabilities.values[i])}, as in the text`);
        guesses.push(guess);
      }
      return make("tr", rowClass(row), heading(layer, "row"), make("td", "guess", ...guesses));
    });
    const goes = state.token + 1 < length ? `The text goes on with ${labels[state.token + 1]}`
      : "The text ends here.";
    fill("predictions", table("The likeliest next tokens after each layer",
      ["Layer", "Likeliest first"], rows), make("p", "", goes));
  }

  // --- choosing ---

  function showAll() {
    showColours(); showChosen(); showStrengths(); showDecay(); showAttention(); showPredictions();
  }

  function choose(token, focus) {
    const old = tokens[state.token], now = tokens[token];
    old.setAttribute("aria-selected", "false");
    old.tabIndex = -1;
    now.setAttribute("aria-selected", "true");
    now.tabIndex = 0;
    state.token = token;
    const text = byId("text"); // which scrolls by itself, where the text is long
    if (focus) now.focus();
    else text.scrollTop = now.offsetTop - text.clientHeight / 2;
    showChosen(); showStrengths(); showDecay(); showAttention(); showPredictions();
  }

  // The token in the next line of text, or the one before, that is nearest in x.
  function beside(token, step) {
    const here = tokens[token].getBoundingClientRect(), middle = (here.left + here.right) / 2;
    let best = token, distance = Infinity, line = null;
    for (let t = token + step; t >= 0 && t < length; t += step) {
      const box = tokens[t].getBoundingClientRect();
      if (Math.abs(box.top - here.top) < here.height / 2) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) > here.height / 2) break;
      const off = Math.abs((box.left + box.right) / 2 - middle);
      if (off < distance) [best, distance] = [t, off];
    }
    return best;
  }

  const KEYS = {
    ArrowRight: (token) => Math.min(length - 1, token + 1),
    ArrowLeft: (token) => Math.max(0, token - 1),
    ArrowDown: (token) => beside(token, 1),
    ArrowUp: (token) => beside(token, -1),
    Home: () => 0,
    End: () => length - 1,
    Enter: (token) => token,
    " ": (token) => token,
  };

  byId("text").addEventListener("click", (event) => {
    const token = tokens.indexOf(event.target.closest(".token"));
    if (token >= 0) choose(token, true);
  });
  byId("text").addEventListener("keydown", (event) => {
    const move = KEYS[event.key], token = tokens.indexOf(event.target.closest(".token"));
    if (!move || token < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(move(token), true);
  });
  byId("layer").addEventListener("change", (event) => {
    state.row = Number(event.target.value);
    showAll();
  });

  showColours();
  const first = colour ? geometricMean(colour) : [0];
  choose(first.reduce((best, value, t) => (value > first[best] ? t : best), 0), false);
})();
