"""Compiles the patched tools/server in FOLDER with the option off, with the commands of the plain build, and compares every object with the
plain build's: the same bytes, or the difference that objdump finds.

    patch_objects.py FOLDER
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
SOURCE = TOP / "llama.cpp"
PLAIN = (TOP / "target" / "llama.cpp").resolve()


def disassembled(path):
    """What objdump says of the code, without the file's name."""
    return subprocess.run(["objdump", "-d", "-r", str(path)], check=True, capture_output=True, text=True).stdout.split("\n", 3)[3]


def main(folder):
    server = f"{SOURCE}/tools/server/"
    commands = [c for c in json.loads((PLAIN / "compile_commands.json").read_text()) if c["file"].startswith(server)]
    if not commands:
        sys.exit(f"{PLAIN} was not built from {SOURCE}; run `make llama`")

    def compare(command):
        name = command["file"].removeprefix(server)
        plain = PLAIN / re.search(r" -o (\S+)", command["command"])[1]
        ours = folder / f"{name}.o"
        # The folder's name is in the constants of every assertion: it is given out as the plain one.
        line = command["command"].replace(f"{SOURCE}/tools/server", f"{folder}/tools/server")
        line = re.sub(r" -o \S+", f" -o {ours} -fmacro-prefix-map={folder}={SOURCE}", line)
        subprocess.run(line, shell=True, check=True, cwd=command["directory"])
        if plain.read_bytes() == ours.read_bytes():
            return name, "identical"
        return name, "same code, other data" if disassembled(plain) == disassembled(ours) else "DIFFERENT CODE"

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(compare, commands))
    for name, answer in found:
        print(f"{name:24} {answer}")
    sys.exit(any(answer != "identical" for _, answer in found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
