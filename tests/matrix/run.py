#!/usr/bin/env python3
"""Old and new builds, other hosts: each runs plain and preloaded, and what we say must agree with what the host itself says.

    tests/matrix/run.py [--all] [--write FILE] [WORD...]

    --all          every entry; without it those that `make test` has time for. A WORD chooses entries by a part of their name.
    --write FILE   docs/COMPATIBILITY.md from what was found, unless something failed

What is known not to work is in expected.py: an entry fails when it is better than that, too. One line an entry, `N passed, N failed,
N skipped` at the end with the reasons of those skipped, exit status 1 on a failure. What each run wrote stays in target/matrix/.
LRI_LIBRARY and LRI_PROGRAM name another library or another llama-resource than those in target/release.
"""
import argparse
import sys
import time
from pathlib import Path

import page
from entries import ENTRIES, PIN
from expected import EXPECTED
from facts import FACTS, Fact, Log, check
from foretold import compare
from host import LIBRARY, MODEL, PINNED, PROGRAM, TARGET, Died, Failed, Run, Skip


def examine(entry):
    """Fact's name -> Fact, of one entry."""
    host, target = entry.prepare()
    plain, preloaded = Run(entry.name, False), Run(entry.name, True)
    try:
        host(plain)
    except Died as e:
        if "SIGILL" in str(e):
            raise Skip("this processor does not have the instructions that this binary was built for (SIGILL, without us too)") from None
        raise Failed(f"without us: {e}; see {plain.dir}") from None
    try:
        host(preloaded)
    except Died as e:
        preloaded.death = str(e)
    log = Log(preloaded)
    facts = check(preloaded, plain, log, entry.applies)
    if target and not preloaded.death:
        facts["doctor"] = Fact()
        compare(facts["doctor"], facts, log, target)
    return facts


def judge(entry, facts):
    """(what is wrong, {fact: why} of what is as bad as expected)."""
    wrong, whys = [], {}
    for name, fact in facts.items():
        state, words, why = EXPECTED.get((entry.name, name), ("yes", "", ""))
        if facts["exit"].state != "yes" and name != "exit":
            whys[name] = EXPECTED.get((entry.name, "exit"), ("", "", "the host died"))[2]
            continue
        reasons = "; ".join(r for r in fact.reasons if r)
        if fact.state != state:
            better = " (mended? take its line out of expected.py)" if state != "yes" and fact.state == "yes" else ""
            wrong.append(f"{name}: {fact.state}, expected {state}{better}{': ' if reasons else ''}{reasons}")
        elif words not in reasons:
            wrong.append(f"{name}: {state} as expected, but not for the reason `{words}`: {reasons}")
        elif state != "yes":
            whys[name] = why
    unknown = [fact for name, fact in EXPECTED if name == entry.name and fact not in facts]
    if facts["exit"].state == "yes" and unknown:
        wrong.append(f"expected.py speaks of facts that were not looked at: {unknown}")
    return wrong, whys


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="every entry")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write docs/COMPATIBILITY.md")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only entries whose name holds one of the words")
    args = parser.parse_args()
    for needed in (LIBRARY, PROGRAM, MODEL, PINNED / "llama-server"):
        if not needed.exists():
            sys.exit(f"{needed} is missing; run make first")
    strange = {name for name, _ in EXPECTED} - {e.name for e in ENTRIES}
    if strange:
        sys.exit(f"expected.py speaks of entries that are not there: {sorted(strange)}")
    chosen = [e for e in ENTRIES if (any(w in e.name for w in args.words) if args.words else args.all or e.fast)]
    width, count, results, skipped = max((len(e.name) for e in chosen), default=0), {"ok": 0, "FAIL": 0, "skip": 0}, [], []
    for entry in chosen:
        began, reasons, notes = time.monotonic(), [], []
        try:
            facts = examine(entry)
            reasons, whys = judge(entry, facts)
            word, text = "FAIL" if reasons else "ok", f"{sum(f.held for f in facts.values())} checks"
            states = [f"{n}: {facts[n].state}" for n in [*FACTS, "doctor"] if n in facts and facts[n].state != "yes"]
            text += f", as expected {', '.join(states)}" if states and not reasons else ""
            notes = sorted({n for f in facts.values() for n in f.notes})
            results.append((entry, facts, whys, None))
        except Skip as e:
            word, text = "skip", str(e)
            skipped.append((entry.name, text))
            with (TARGET / "skipped.txt").open("a") as told:  # told once more at the end of `make test`
                told.write(f"matrix/{entry.name.replace(' ', '-')}: {text}\n")
            results.append((entry, None, {}, text))
        except Failed as e:
            word, text, reasons = "FAIL", "did not get as far as its checks", [str(e)]
        count[word] += 1
        text += f" ({time.monotonic() - began:.0f} s)" + (f" [{'; '.join(notes)}]" if notes else "")
        print(f"{word:<4} {entry.name:<{width}}   {text}", *(f"       {r}" for r in reasons), sep="\n", flush=True)
    print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
    for name, why in skipped:
        print(f"       skipped: {name}: {why}")
    if args.write:
        if count["FAIL"] or len(chosen) < len(ENTRIES):
            print(f"{args.write} is not written: {'something failed' if count['FAIL'] else 'not every entry ran (--all)'}")
        else:
            page.write(args.write, results, PIN)
            print(f"wrote {args.write}")
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
