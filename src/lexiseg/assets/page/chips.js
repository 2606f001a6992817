// Class names as chips: a name, its synonyms, and its kind.

const KINDS = [null, true, false];
const KIND_NAMES = new Map([[null, "auto"], [true, "thing"], [false, "stuff"]]);
const KIND_HELP = "Kind: things are counted one by one, stuff is one region. Auto: the service decides.";

// "dog, puppy | thing" -> { name, synonyms, thing }; null for an empty text.
export function parseClass(text) {
  const [names, kind] = text.split("|").map((part) => part.trim());
  const [name, ...synonyms] = names.replace(/^\d+\s*:/, "").split(",").map((part) => part.trim().replace(/\s+/g, " ")).filter(Boolean);
  if (!name) return null;
  return { name, synonyms, thing: kind === "thing" ? true : kind === "stuff" ? false : null };
}

export function parseList(text) {
  return text.split(/[;\n\r]+/).filter((line) => !line.trimStart().startsWith("#")).map(parseClass).filter(Boolean);
}

export const written = (entry) =>
  [entry.name, ...entry.synonyms].join(", ") + (entry.thing === null ? "" : entry.thing ? " | thing" : " | stuff");

export class Chips {
  constructor(list, input, onChange) {
    this.entries = [];
    this.list = list;
    this.input = input;
    this.onChange = onChange;
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("paste", (event) => this.#paste(event));
    input.addEventListener("blur", () => this.commit());
  }

  set(entries) {
    this.entries = [];
    this.add(entries);
    this.#draw();
  }

  // Adds classes; a class of the same name takes the new synonyms.
  add(entries) {
    for (const entry of entries) {
      const known = this.entries.find((other) => other.name.toLowerCase() === entry.name.toLowerCase());
      if (known) Object.assign(known, { synonyms: [...new Set([...known.synonyms, ...entry.synonyms])] });
      else this.entries.push({ ...entry, synonyms: [...entry.synonyms] });
    }
    this.#draw();
  }

  // Makes a class of what is being typed.
  commit() {
    const entries = parseList(this.input.value);
    this.input.value = "";
    if (entries.length) this.add(entries);
  }

  #key(event) {
    if ((event.key === "Enter" || event.key === ";") && !event.isComposing) {
      if (event.key === ";" || this.input.value.trim()) {
        event.preventDefault();
        this.commit();
      }
    } else if (event.key === "Backspace" && this.input.value === "" && this.entries.length) {
      event.preventDefault();
      this.#edit(this.entries.at(-1));
    }
  }

  #paste(event) {
    const text = event.clipboardData?.getData("text") ?? "";
    if (/[;\n\r]/.test(text.trim())) {
      event.preventDefault();
      this.add(parseList(`${this.input.value}${text}`));
      this.input.value = "";
    }
  }

  #edit(entry) {
    this.entries.splice(this.entries.indexOf(entry), 1);
    this.#draw();
    this.input.value = written(entry);
    this.input.focus();
  }

  #remove(entry) {
    const position = this.entries.indexOf(entry);
    this.entries.splice(position, 1);
    this.#draw();
    (this.list.children[Math.min(position, this.entries.length - 1)]?.querySelector(".chip-remove") ?? this.input).focus();
  }

  #turn(entry) {
    entry.thing = KINDS[(KINDS.indexOf(entry.thing) + 1) % KINDS.length];
    const position = this.entries.indexOf(entry);
    this.#draw();
    this.list.children[position].querySelector(".chip-kind").focus();
  }

  #draw() {
    this.list.replaceChildren(...this.entries.map((entry) => this.#chip(entry)));
    this.onChange(this.entries);
  }

  #chip(entry) {
    const item = document.createElement("li");
    item.className = "chip";
    const name = button("chip-name", entry.name, `Edit ${entry.name}`, () => this.#edit(entry));
    if (entry.synonyms.length) {
      const small = document.createElement("small");
      small.textContent = entry.synonyms.join(", ");
      name.append(" ", small);
    }
    const kind = KIND_NAMES.get(entry.thing);
    const kindButton = button(`chip-kind ${kind}`, kind, `Kind of ${entry.name}: ${kind}`, () => this.#turn(entry));
    kindButton.title = KIND_HELP;
    item.append(name, kindButton, button("chip-remove", "×", `Remove ${entry.name}`, () => this.#remove(entry)));
    return item;
  }
}

function button(kind, text, label, onClick) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = kind;
  element.textContent = text;
  element.setAttribute("aria-label", label);
  element.addEventListener("click", onClick);
  return element;
}
