// The last minutes of a number, as a small curve.

const SVG = "http://www.w3.org/2000/svg";
const LENGTH = 120;
const HEIGHT = 100;

export class Plot {
  #values = [];
  #area = document.createElementNS(SVG, "path");
  #line = document.createElementNS(SVG, "path");

  constructor(svg) {
    svg.setAttribute("viewBox", `0 0 ${LENGTH - 1} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.#area.setAttribute("class", "area");
    this.#line.setAttribute("class", "line");
    svg.replaceChildren(this.#area, this.#line);
  }

  // Adds a value, null where nobody knows it; `top` is the least that the curve's height stands for.
  push(value, top = 1) {
    this.#values.push(value);
    if (this.#values.length > LENGTH) this.#values.shift();
    const scale = (HEIGHT - 4) / Math.max(top, ...this.#values.map((known) => known ?? 0));
    const left = LENGTH - this.#values.length;
    let line = "";
    let area = "";
    this.#runs().forEach(([start, run]) => {
      const points = run.map((known, i) => `${left + start + i} ${(HEIGHT - 2 - known * scale).toFixed(1)}`);
      line += `M${points.join("L")}`;
      area += `M${left + start} ${HEIGHT}L${points.join("L")}V${HEIGHT}Z`;
    });
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", area);
  }

  // Where values are known without a gap: [where it starts, the values].
  #runs() {
    const runs = [];
    this.#values.forEach((value, i) => {
      if (value === null) return;
      const last = runs.at(-1);
      if (last && last[0] + last[1].length === i) last[1].push(value);
      else runs.push([i, [value]]);
    });
    return runs;
  }
}
