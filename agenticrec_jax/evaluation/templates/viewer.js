"use strict";
// Shows the trajectories of a page: a list with filters, and sheets that can be linked to.
//
// Text of data and of policies enters the page by `make` alone, which makes text nodes of it: no
// string is ever read as HTML. The page's elements with `data-view` name what they list:
// `trajectories`, `groups` of training, or `pairs` of trajectories that are compared.

// ---- Elements and packed data

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, String(value));
  }
  element.append(...children.flat().filter((child) => child !== null)); // strings become text
  return element;
}

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Chunks of details by number: from the page itself, or from a script of the folder beside it.
class Chunks {
  constructor(index) {
    this.size = index.chunk;
    this.folder = index.folder;
    this.digest = index.digest;
    this.count = Math.ceil((index.trajectories.length + index.groups.length) / index.chunk);
    this.promises = new Map();
    this.arriving = new Map();
    window.viewerChunk = (number, base64) => this.arriving.get(number)(base64);
  }

  chunk(number) {
    if (!this.promises.has(number)) {
      const forget = (error) => { // so that the next one who asks loads it again
        this.promises.delete(number);
        throw error;
      };
      this.promises.set(number, this.read(number).then(unpack).catch(forget));
    }
    return this.promises.get(number);
  }

  async read(number) {
    if (!this.folder) return document.getElementById(`chunk-${number}`).textContent;
    return new Promise((resolve, reject) => {
      this.arriving.set(number, resolve);
      const name = `${number}-${this.digest}.js`;
      const missing = () => reject(new Error(`${this.folder}/${name} is missing`));
      const src = `${encodeURIComponent(this.folder)}/${name}`;
      document.head.append(make("script", { src, error: missing }));
    });
  }

  async detail(number) {
    return (await this.chunk(Math.floor(number / this.size)))[number % this.size];
  }
}

// ---- Entries of the lists

function readExamples(index) {
  return index.examples.map(([id, split, user, history, candidates, target, popularity]) => {
    const titles = (numbers) => numbers.map((number) => index.titles[number]);
    const example = { id, split, user, target, popularity };
    example.history = titles(history);
    example.candidates = titles(candidates);
    example.words = [id, user, ...example.history, ...example.candidates].join("\n").toLowerCase();
    return example;
  });
}

function readTrajectories(index, examples) {
  return index.trajectories.map(([row, seed, example, outcome, rank, calls, reward], number) => {
    const entry = { number, outcome, rank, reward, seed, row: index.rows[row] };
    entry.example = examples[example];
    entry.calls = calls.map((tool) => index.tools[tool]);
    entry.numbers = [number];
    entry.key = `${encodeURIComponent(entry.row)},${seed ?? ""},${entry.example.id}`;
    entry.hash = `#trajectory=${entry.key}`;
    return entry;
  });
}

function readGroups(index, examples) {
  const read = ([row, seed, example, step, group, task, rewards, advantages, tools], i) => {
    const entry = { seed, step, group, task, rewards, advantages, row: index.rows[row] };
    entry.example = examples[example];
    entry.calls = tools.map((tool) => index.tools[tool]);
    entry.numbers = [index.trajectories.length + i];
    entry.mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
    entry.dropped = advantages.every((advantage) => advantage === null);
    entry.hash = `#group=${encodeURIComponent(entry.row)},${seed ?? ""},${step},${group}`;
    return entry;
  };
  return index.groups.map(read);
}

function readPairs(index, trajectories) {
  return index.pairs.map(([a, b, change]) => {
    const [first, second] = [trajectories[a], trajectories[b]];
    const entry = { first, second, change, example: first.example, seed: first.seed };
    entry.calls = [...new Set([...first.calls, ...second.calls])];
    entry.numbers = [a, b];
    entry.hash = `#pair=${first.key}`;
    return entry;
  });
}

// ---- Filters and columns of each view

const spelled = (value, sign = false) =>
  value === null ? "–" : (sign && value >= 0 ? "+" : "") + value.toFixed(3);
const tools = (entry) => (entry.calls.length ? entry.calls : ["no tool"]);
const seedOf = (entry) => [entry.seed === null ? "none" : String(entry.seed)];
const place = (entry) => (entry.outcome === "hit" ? String(entry.rank) : entry.outcome);

const EXAMPLE_RANGES = [
  { label: "history length", number: (entry) => entry.example.history.length },
  { label: "target's popularity", number: (entry) => entry.example.popularity },
];
const EXAMPLE_COLUMNS = [
  { label: "user", text: (entry) => entry.example.user },
  { label: "history", text: (entry) => entry.example.history.length },
  { label: "popularity", text: (entry) => entry.example.popularity ?? "–" },
];

const VIEWS = {
  trajectories: {
    noun: "trajectories",
    filters: [
      { label: "row", choice: (entry) => [entry.row] },
      { label: "seed", choice: seedOf },
      { label: "outcome", choice: (entry) => [entry.outcome] },
      { label: "tool used", choice: tools },
      { label: "calls", number: (entry) => entry.calls.length },
      ...EXAMPLE_RANGES,
      { label: "target's rank", number: (entry) => entry.rank },
      { label: "target's number", number: (entry) => entry.example.target },
    ],
    orders: {
      "as evaluated": null,
      "lowest reward first": (entry) => entry.reward,
      "highest reward first": (entry) => -entry.reward,
      "rarest target first": (entry) => entry.example.popularity ?? Infinity,
      "most calls first": (entry) => -entry.calls.length,
    },
    columns: [
      { label: "example", text: (entry) => entry.example.id },
      { label: "row", text: (entry) => entry.row, words: true },
      { label: "seed", text: (entry) => entry.seed ?? "–" },
      { label: "rank", text: place, kind: (entry) => entry.outcome },
      { label: "calls", text: (entry) => entry.calls.length },
      { label: "reward", text: (entry) => spelled(entry.reward, true) },
      ...EXAMPLE_COLUMNS,
    ],
    summary: (entries) => {
      const count = (outcome) => entries.filter((entry) => entry.outcome === outcome).length;
      const first = entries.filter((entry) => entry.rank === 1).length;
      return `${count("hit")} hits (${first} in the first place), ${count("miss")} misses, ` +
        `${count("invalid")} invalid`;
    },
    sheet: trajectorySheet,
  },
  groups: {
    noun: "groups",
    filters: [
      { label: "stage", choice: (entry) => [entry.row] },
      { label: "seed", choice: seedOf },
      { label: "task", choice: (entry) => [entry.task] },
      { label: "learned from", choice: (entry) => [entry.dropped ? "no" : "yes"] },
      { label: "tool used", choice: tools },
      { label: "step", number: (entry) => entry.step },
      { label: "mean reward", number: (entry) => entry.mean },
      ...EXAMPLE_RANGES,
    ],
    orders: {
      "in the order of steps": null,
      "lowest mean reward first": (entry) => entry.mean,
      "widest rewards first": (entry) => Math.min(...entry.rewards) - Math.max(...entry.rewards),
    },
    columns: [
      { label: "step", text: (entry) => `${entry.step}.${entry.group + 1}` },
      { label: "stage", text: (entry) => entry.row, words: true },
      { label: "seed", text: (entry) => entry.seed ?? "–" },
      { label: "task", text: (entry) => entry.task },
      { label: "members", text: (entry) => entry.rewards.length },
      { label: "mean reward", text: (entry) => spelled(entry.mean, true) },
      { label: "learned from", text: (entry) => (entry.dropped ? "no" : "yes") },
      ...EXAMPLE_COLUMNS,
    ],
    summary: (entries) =>
      `${entries.filter((entry) => !entry.dropped).length} of them were learned from`,
    sheet: groupSheet,
  },
  pairs: {
    noun: "pairs",
    filters: [
      { label: "change", choice: (entry) => [entry.change] },
      { label: "seed", choice: seedOf },
      { label: "tool used by A", choice: (entry) => tools(entry.first) },
      { label: "tool used by B", choice: (entry) => tools(entry.second) },
      ...EXAMPLE_RANGES,
      { label: "rank by A", number: (entry) => entry.first.rank },
      { label: "rank by B", number: (entry) => entry.second.rank },
    ],
    orders: {
      "as evaluated": null,
      "largest gain in reward first": (entry) => entry.first.reward - entry.second.reward,
      "largest loss in reward first": (entry) => entry.second.reward - entry.first.reward,
    },
    columns: [
      { label: "example", text: (entry) => entry.example.id },
      { label: "seed", text: (entry) => entry.seed ?? "–" },
      {
        label: "change",
        text: (entry) => entry.change,
        kind: (entry) => ({ gained: "hit", lost: "invalid" })[entry.change] ?? "",
      },
      { label: "A", text: (entry) => place(entry.first), kind: (entry) => entry.first.outcome },
      { label: "B", text: (entry) => place(entry.second), kind: (entry) => entry.second.outcome },
      { label: "calls of A", text: (entry) => entry.first.calls.length },
      { label: "calls of B", text: (entry) => entry.second.calls.length },
      ...EXAMPLE_COLUMNS,
    ],
    summary: (entries) => {
      const count = (change) => entries.filter((entry) => entry.change === change).length;
      return `${count("gained")} gained, ${count("lost")} lost`;
    },
    sheet: pairSheet,
  },
};

// ---- Sheets: one example with one or several trajectories side by side

function itemList(entries, target) {
  const lines = entries.map(([label, number, title]) =>
    make("li", number === target ? { class: "target" } : {},
      make("span", { class: "number" }, label),
      make("span", { class: "name", title }, title),
      number === target ? make("span", { class: "tag" }, "target") : null));
  return make("ol", { class: "items" }, lines);
}

// The target's number is marked in orders of candidate numbers, such as "similar:7,3,".
function marked(text, target) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(/(?<=[:\[])\s*(?:\d+,\s*)+\d*/g)) {
    parts.push(text.slice(end, match.index));
    for (const piece of match[0].split(/(\d+)/)) {
      parts.push(piece === String(target) ? make("b", { class: "target" }, piece) : piece);
    }
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

function turnBlock([kind, text, answered, milliseconds], target) {
  const label = kind.replace("_", " ").replace("think", "thought");
  const side = milliseconds === undefined ? null : make("span", { class: "side" },
    answered ? null : make("span", { class: "failed" }, "failed"),
    `${answered ? "" : " · "}${milliseconds.toFixed(1)} ms`);
  return make("div", { class: `turn ${kind}` },
    make("div", { class: "eyebrow" }, make("span", {}, label), side),
    make("div", { class: "body" }, marked(text, target)));
}

function verdict(detail) {
  if (detail.outcome === "invalid") return ["invalid", `invalid: ${detail.reason}`];
  if (detail.choice) {
    const right = detail.reward[0] > 0;
    return [right ? "hit" : "miss", `${detail.choice}: ${right ? "right" : "wrong"}`];
  }
  if (detail.outcome === "hit") return ["hit", `hit at rank ${detail.rank}`];
  return ["miss", "miss: the target is not listed"];
}

function memberBlock(label, detail, example, advantage) {
  const [kind, words] = verdict(detail);
  const [ranking, format, bonus, total] = detail.reward;
  const term = (name, value) =>
    make("span", { class: "term" }, name, make("b", {}, spelled(value, true)));
  const sign = advantage > 0 ? "hit" : advantage < 0 ? "invalid" : "miss";
  const isGroup = advantage !== undefined;
  const title = (number) => example.candidates[number - 1] ?? "";
  return make("div", { class: "turns" },
    make("h4", {}, label, " ", make("span", { class: `badge ${kind}` }, words)),
    isGroup ? make("p", { class: `advantage ${sign}` },
      advantage === null ? "no advantage: the group was dropped"
        : `advantage ${spelled(advantage, true)}`) : null,
    detail.turns.map((turn) => turnBlock(turn, example.target)),
    detail.ranking === null
      ? make("p", { class: "caption" }, `ended by ${detail.finish}`)
      : make("details", { open: !isGroup }, make("summary", {}, "Final ranking"),
        itemList(detail.ranking.map((number, i) => [`${i + 1}.`, number, `${number}  ${title(number)}`]),
          example.target)),
    make("div", { class: "eyebrow" }, "Reward"),
    make("div", { class: "sum" }, term("ranking", ranking), term("format", format),
      term("tool bonus", bonus), "=", term("total", total)));
}

function sheet(example, head, members, prompt = null) {
  const inputs = make("div", { class: "inputs" },
    make("div", { class: "eyebrow" }, "History, oldest first"),
    itemList(example.history.map((title, i) => [`h${i + 1}`, null, title])),
    example.candidates.length ? [
      make("div", { class: "eyebrow" }, "Candidates with their numbers"),
      itemList(example.candidates.map((title, i) => [i + 1, i + 1, title]), example.target),
    ] : null,
    prompt === null ? null
      : make("details", {}, make("summary", {}, "Prompt"), make("pre", {}, prompt)));
  return make("article", {},
    make("header", {}, make("h3", {}, `Example ${example.id}`),
      make("span", { class: "who" }, `user ${example.user} · ${example.split} · ${head}`)),
    make("div", { class: "columns" }, inputs,
      make("div", { class: members.length > 1 ? "members" : "" }, members)));
}

const named = (entry) =>
  entry.row + (entry.seed === null ? "" : `, seed ${entry.seed}`);

async function trajectorySheet(entry, viewer, beside) {
  const shown = beside ? [entry, beside] : [entry];
  const details = await Promise.all(shown.map((each) => viewer.chunks.detail(each.number)));
  const members = shown.map((each, i) => memberBlock(named(each), details[i], each.example));
  const others = viewer.trajectories.filter(
    (other) => other !== entry && other.example === entry.example);
  const choose = (event) => {
    location.hash = entry.hash + (event.target.value ? `&beside=${event.target.value}` : "");
  };
  const select = make("select", { change: choose, "aria-label": "beside" },
    make("option", { value: "" }, "nothing"),
    others.map((other) => make("option", { value: other.key, selected: other === beside },
      `${named(other)}: ${place(other)}`)));
  const element = sheet(entry.example, named(entry), members);
  if (others.length) {
    element.firstChild.append(make("label", { class: "beside" }, "beside ", select));
  }
  return element;
}

async function groupSheet(entry, viewer) {
  const { prompt, members } = await viewer.chunks.detail(entry.numbers[0]);
  const blocks = members.map((detail, i) =>
    memberBlock(`member ${i + 1}`, detail, entry.example, entry.advantages[i]));
  return sheet(entry.example, `${named(entry)}, step ${entry.step}`, blocks, prompt);
}

async function pairSheet(entry, viewer) {
  const details = await Promise.all(entry.numbers.map((number) => viewer.chunks.detail(number)));
  const blocks = [entry.first, entry.second].map((each, i) =>
    memberBlock(`${"AB"[i]}: ${named(each)}`, details[i], each.example));
  return sheet(entry.example, entry.change, blocks);
}

// ---- The list of a view

const AT_ONCE = 100; // lines of the list that are shown before a click asks for more

class List {
  constructor(root, name, entries, viewer) {
    this.view = VIEWS[name];
    this.entries = entries;
    this.viewer = viewer;
    this.state = new Map(); // a test of an entry by the filter's label
    this.words = [];
    this.limit = AT_ONCE;
    this.count = make("p", { class: "count", "aria-live": "polite" });
    this.body = make("tbody");
    this.more = make("button", { type: "button", click: () => this.show(this.limit + AT_ONCE) });
    const head = this.view.columns.map(({ label, words }) =>
      make("th", words ? { class: "words" } : {}, label));
    this.sheet = make("div", { class: "sheet" });
    root.replaceChildren(this.controls(), this.count, this.sheet,
      make("div", { class: "scroll" },
        make("table", { class: "list" }, make("thead", {}, make("tr", {}, head)), this.body)),
      this.more);
    this.apply();
  }

  controls() {
    const later = (action) => {
      let timer = null;
      return (event) => {
        clearTimeout(timer);
        timer = setTimeout(() => action(event), 150);
      };
    };
    const search = make("input", { type: "search", placeholder: "user, example, title, any text",
      focus: () => this.viewer.readAll().catch(() => {}), // the search says what is missing
      input: later((event) => this.search(event.target.value)) });
    const order = make("select", { change: (event) => this.apply(event.target.value) },
      Object.keys(this.view.orders).map((label) => make("option", {}, label)));
    this.form = make("form", { class: "filters", submit: (event) => event.preventDefault(),
      reset: () => setTimeout(() => this.reset()) },
      make("label", { class: "wide" }, "search", search),
      this.view.filters.map((filter) =>
        filter.choice ? this.choiceControl(filter) : this.rangeControl(filter, later)),
      make("label", {}, "order", order),
      make("button", { type: "reset" }, "clear"));
    return this.form;
  }

  choiceControl(filter) {
    const counts = new Map();
    for (const entry of this.entries) {
      for (const value of new Set(filter.choice(entry))) {
        counts.set(value, (counts.get(value) ?? 0) + 1);
      }
    }
    const change = (event) => {
      const value = event.target.value;
      const chosen = [...counts.keys()][value];
      this.filter(filter, value === "" ? null : (entry) => filter.choice(entry).includes(chosen));
    };
    return make("label", {}, filter.label,
      make("select", { change }, make("option", { value: "" }, "any"),
        [...counts].map(([value, count], i) =>
          make("option", { value: i }, `${value} (${count})`))));
  }

  rangeControl(filter, later) {
    const change = () => {
      const [low, high] = inputs.map((input) => (input.value === "" ? null : Number(input.value)));
      const test = (entry) => {
        const value = filter.number(entry);
        return value !== null && (low === null || value >= low) && (high === null || value <= high);
      };
      this.filter(filter, low === null && high === null ? null : test);
    };
    const inputs = ["from", "to"].map((name) => make("input", { type: "number", step: "any",
      placeholder: name, "aria-label": `${filter.label} ${name}`, input: later(change) }));
    return make("label", {}, filter.label, make("span", { class: "range" }, inputs));
  }

  reset() {
    this.state.clear();
    this.words = [];
    this.apply(Object.keys(this.view.orders)[0]);
  }

  filter(filter, test) {
    if (test) this.state.set(filter.label, test);
    else this.state.delete(filter.label);
    this.apply();
  }

  search(text) {
    this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.apply();
  }

  matches(entry) {
    const texts = [entry.example.words, ...entry.numbers.map((number) => this.viewer.texts[number])];
    return this.words.every((word) => texts.some((text) => text.includes(word)));
  }

  // Filters and orders as the controls say; a search first reads the turns of all trajectories.
  async apply(order = this.order) {
    this.order = order;
    if (this.words.length && !this.viewer.isRead) {
      this.count.textContent = "reading all trajectories …";
      try {
        await this.viewer.readAll();
      } catch (error) {
        if (this.words.length) this.fail(error);
        return;
      }
    }
    const tests = [...this.state.values()];
    if (this.words.length) tests.push((entry) => this.matches(entry));
    this.chosen = this.entries.filter((entry) => tests.every((test) => test(entry)));
    const value = this.view.orders[order];
    if (value) this.chosen.sort((a, b) => value(a) - value(b));
    this.show(AT_ONCE);
  }

  // Says in the line above the list why something is not shown.
  fail(error) {
    this.count.replaceChildren(make("span", { class: "failed" }, `Cannot be shown: ${error.message}`));
  }

  show(limit) {
    this.limit = limit;
    const unread = this.words.length && !this.viewer.isRead ? "not searched: " : "";
    this.count.textContent = `${unread}${this.chosen.length} of ${this.entries.length} ` +
      `${this.view.noun}: ${this.view.summary(this.chosen)}`;
    this.body.replaceChildren(...this.chosen.slice(0, limit).map((entry) => this.line(entry)));
    const left = this.chosen.length - limit;
    this.more.hidden = left <= 0;
    this.more.textContent = `show ${Math.min(left, AT_ONCE)} more of ${left}`;
  }

  line(entry) {
    const cells = this.view.columns.map(({ text, kind, words }, i) => {
      const content = String(text(entry));
      if (i === 0) return make("td", {}, make("a", { href: entry.hash }, content));
      return make("td", { class: words ? "words" : kind ? kind(entry) : null }, content);
    });
    return make("tr", entry === this.open ? { class: "open" } : {}, cells);
  }

  async present(entry, beside) {
    this.open = entry;
    const position = this.chosen.indexOf(entry);
    const step = (label, other) =>
      other ? make("a", { href: other.hash }, label) : make("span", { class: "none" }, label);
    const bar = make("nav", {}, step("← previous", this.chosen[position - 1]),
      step("next →", position < 0 ? null : this.chosen[position + 1]),
      make("a", { href: entry.hash, class: "link" }, "link to this"),
      make("a", { href: `#${this.view.noun}` }, "close"));
    const element = await this.view.sheet(entry, this.viewer, beside);
    if (this.open !== entry) return; // another one was asked for in the meantime
    this.sheet.replaceChildren(bar, element);
    this.show(this.limit);
    this.sheet.scrollIntoView();
  }

  close() {
    this.open = null;
    this.sheet.replaceChildren();
    this.show(this.limit);
  }
}

// ---- The page

class Viewer {
  constructor(index) {
    const examples = readExamples(index);
    this.chunks = new Chunks(index);
    this.texts = [];
    this.trajectories = readTrajectories(index, examples);
    const entries = {
      trajectories: this.trajectories,
      groups: readGroups(index, examples),
      pairs: readPairs(index, this.trajectories),
    };
    this.lists = [];
    this.byHash = new Map();
    for (const root of document.querySelectorAll("[data-view]")) {
      const list = new List(root, root.dataset.view, entries[root.dataset.view], this);
      this.lists.push(list);
      for (const entry of list.entries) this.byHash.set(entry.hash, [list, entry]);
    }
    this.byKey = new Map(this.trajectories.map((entry) => [entry.key, entry]));
  }

  // Reads the text of every turn, for the search.
  async readAll() {
    this.reading ??= this.readChunks().catch((error) => {
      this.reading = null; // the next search reads again
      throw error;
    });
    await this.reading;
  }

  async readChunks() {
    const numbers = Array.from({ length: this.chunks.count }, (_, number) => number);
    const chunks = await Promise.all(numbers.map((number) => this.chunks.chunk(number)));
    for (const detail of chunks.flat()) {
      const members = detail.members ?? [detail];
      const turns = members.flatMap((member) => member.turns.map((turn) => turn[1]));
      this.texts.push(turns.join("\n").toLowerCase());
    }
    this.isRead = true;
  }

  async follow() {
    const [hash, key] = location.hash.split("&beside=");
    const linked = this.byHash.get(hash);
    for (const list of this.lists) {
      if (!linked || linked[0] !== list) list.close();
    }
    if (!linked) return;
    const [list, entry] = linked;
    try {
      await list.present(entry, this.byKey.get(key));
    } catch (error) {
      if (list.open !== entry) return; // another one was asked for in the meantime
      list.close();
      list.fail(error);
    }
  }
}

async function start() {
  const packed = document.getElementById("index");
  const viewer = new Viewer(await unpack(packed.textContent));
  window.addEventListener("hashchange", () => viewer.follow());
  await viewer.follow();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  for (const root of document.querySelectorAll("[data-view]")) {
    root.replaceChildren(make("p", { class: "failed" }, `Cannot be shown: ${error.message}`));
  }
});
