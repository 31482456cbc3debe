"""docs/COMPATIBILITY.md, written from what a run of the matrix found."""

COLUMNS = ["output", "requests", "memory", "KV", "operation times", "capture", "labels", "doctor"]
TITLES = {"output": "output identical", "doctor": "doctor foretold it"}
HEAD = """# Compatibility

Each host ran twice, plain and with the library preloaded (`DETAILED`, and a capture of `residual,logits`), with the
same prompts of SmolLM2-135M. `make compatibility` writes this page from what it finds; it is not edited by hand.
`make test-matrix-all` finds the same again or fails.

- **published**: as the package or its registry says.
- **output identical**: every token, text and count of the host's answers, and its exit status.
- **requests**: prompt, cached and generated tokens of every request, against the host's own counts.
- **memory**: buffers of weights, KV cache and compute, against the sizes that the host prints; every one that was
  allocated was freed.
- **KV**: writes of graphs, cuts by the host, and the cells in use when a request ends.
- **operation times**: operations, components and layers are timed, and together take no more time than the graphs
  that they ran in.
- **capture**: seen = captured + skipped + dropped, nothing dropped, all layers and the logits with a row for
  every token, checksums.
- **labels**: every row has sequence, position and token, those of the last block and the logits too.
- **doctor foretold it**: what `llama-resource doctor` said beforehand is what then happened, line by line.
"""


def cell(state, footnote):
    return f"{state} [^{footnote}]" if footnote else state


def write(path, results, pinned):
    """`results`: [(entry, facts by name or None, {fact: why}, why it was skipped or None)]."""
    notes, numbers = [], {}

    def footnote(text):
        if text not in numbers:
            notes.append(text)
            numbers[text] = len(notes)
        return numbers[text]

    titles = ["host", "version", "published", "how it loads ggml", *(TITLES.get(c, c) for c in COLUMNS)]
    lines = [HEAD, f"The pinned llama.cpp is {pinned}.\n", "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for entry, facts, whys, skipped in results:
        cells = []
        for fact in COLUMNS:
            if skipped:
                cells.append(cell("not run", footnote(skipped)))
            elif fact not in facts:
                cells.append(cell("–", footnote(entry.without[fact])))
            else:
                state = facts[fact].state
                if fact == "output" and state == "yes":
                    state = facts["exit"].state
                cells.append(cell(state, footnote(whys[fact]) if state != "yes" else None))
        # What is fetched anew has no version where it cannot be had.
        version, date = (value if not callable(value) else "–" if skipped else value() for value in (entry.version, entry.date))
        lines.append("| " + " | ".join([entry.name, version, date, entry.loads, *cells]) + " |")
    lines.append("")
    lines += [f"[^{i}]: {text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" for i, text in enumerate(notes, 1)]
    path.write_text("\n".join(lines) + "\n")
