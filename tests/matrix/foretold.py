"""What `llama-resource doctor` foretells of a host, beside what then happened."""
import json
import os
import subprocess

from host import PROGRAM, Failed

# Doctor's key, and the fact that it is about.
KEYS = {"models": "model", "requests": "requests", "kv_operations": "KV", "memory": "memory", "operation_times": "operation times",
        "capture": "capture", "tensors": "tensors", "layout": "layout"}
DOCTOR_LIMIT_S = 60


def doctor(path, launcher=(), cwd=None, extra=None):
    """(exit status, text, JSON or None)."""
    answers = []
    for more in ([], ["--json"]):
        try:
            command = [*map(str, launcher), str(PROGRAM), "doctor", str(path), *more]
            got = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 timeout=DOCTOR_LIMIT_S, cwd=cwd, env=os.environ | (extra or {}))
        except (OSError, subprocess.TimeoutExpired) as e:
            raise Failed(f"cannot run {PROGRAM} doctor: {e}") from None
        answers.append(got)
    try:
        said = json.loads(answers[1].stdout)
    except ValueError:
        said = None
    return answers[0].returncode, answers[0].stdout, said


def predictions(said):
    """Key -> (yes, no or unknown; reason). Empty where the program has no stable keys yet."""
    found = (said or {}).get("predictions") or {}
    return {key: (value["value"], value["reason"]) for key, value in found.items()}


def compare(f, facts, log, target):
    """Line by line: what was foretold as yes must be there in full, what as no must not be, or not in full."""
    status, text, said = doctor(**target)
    seen = any(facts[name].state != "no" for name in ("model", "requests", "memory", "operation times") if name in facts)
    what = "something" if seen else "nothing"
    f.that((status == 0) == seen, f"doctor exits {status} on a host of which {what} is seen: {text.strip()[:200]}")
    lines = predictions(said)
    if not lines:
        f.notes.append("doctor --json has no predictions")
        return
    f.that(lines.keys() == KEYS.keys(), f"doctor's keys are {sorted(lines)}, expected {sorted(KEYS)}")
    for key, (value, why) in lines.items():
        if KEYS.get(key) == "layout":
            there = not any(component == "layout" and state != "ok" for component, state, _ in log.states())
            if there and not log.steps():
                continue  # nobody has looked
        elif KEYS.get(key) in facts:
            there = facts[KEYS[key]].seen
        else:
            continue
        if value == "unknown":
            f.notes.append(f"doctor does not know of {key}: {why}")
        else:
            f.that(value == ("yes" if there else "no"), f"doctor says {key}: {value} ({why}), but it is {'' if there else 'not '}there")
