"""What `llama-resource doctor` foretells of a host, beside what then happened."""
import json
import subprocess

from host import PROGRAM, Failed

# Doctor's key, and the fact that it is about.
KEYS = {"models": "model", "requests": "requests", "kv_operations": "KV", "memory": "memory", "operation_times": "operation times",
        "capture": "capture", "tensors": "capture", "layout": "layout"}
DOCTOR_LIMIT_S = 60


def doctor(path, launcher=(), cwd=None):
    """(exit status, text, JSON or None)."""
    answers = []
    for more in ([], ["--json"]):
        try:
            got = subprocess.run([*map(str, launcher), str(PROGRAM), "doctor", str(path), *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, timeout=DOCTOR_LIMIT_S, cwd=cwd)
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
    found = {}
    features = (said or {}).get("features", {})
    if isinstance(features, dict):
        features = [dict(value, key=key) if isinstance(value, dict) else {"key": key, "works": value} for key, value in features.items()]
    for feature in features:
        key = feature.get("key") or feature.get("feature")
        if key in KEYS:
            found[key] = (str(feature.get("works") or feature.get("state")), feature.get("reason") or feature.get("why") or "")
    return found if "kv_operations" in found else {}


def compare(f, facts, log, target):
    """Line by line: what was foretold as yes must be there in full, what as no must not be there at all."""
    status, text, said = doctor(**target)
    seen = any(facts[name].state != "no" for name in ("model", "requests", "memory", "operation times") if name in facts)
    f.that((status == 0) == seen, f"doctor exits {status} on a host of which {'something' if seen else 'nothing'} is seen: {text.strip()[:200]}")
    lines = predictions(said)
    if not lines:
        f.notes.append("doctor has no --json with stable keys")
    for key, (works, why) in lines.items():
        if KEYS[key] == "layout":
            wrong = [s for s in log.states() if s[0] == "layout" and s[1] != "ok"]
            state = "no" if wrong else "yes"
            if not log.steps():
                continue
        elif KEYS[key] not in facts:
            continue
        else:
            state = facts[KEYS[key]].state
        if works in ("yes", "no"):
            f.that(works == state, f"doctor says {key}: {works} ({why}); it was: {state}")
        else:
            f.notes.append(f"doctor says {key}: {works}")
    return text, said
