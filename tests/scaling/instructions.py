"""Instructions that a relay spends on a frame, a report and a handshake, by valgrind's callgrind.

Unlike times they are the same on a busy machine. Each figure is the slope between a short run and a long one.
Usage: DUORELAY_BIN=PROGRAM python3 tests/scaling/instructions.py [--part NAME]... [--users N] [--keep FOLDER]
       [PROGRAM...]
Programs stand in columns; DUORELAY_BIN is the load generator, and the only program if none is named. callgrind's files
go to FOLDER, for callgrind_annotate.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
from measure import Bench, say, table

SHORT, LONG = 3, 13
STREAM = ["stream", "--fps=30", "--warmup=1s"]
# Name to: what is counted, instances, whether they have a Redis, what the load generator does.
PARTS = {
    "frame": ("a frame on one instance, no reports", 1, False, [*STREAM, "--no-reports"]),
    "reports": ("a frame on one instance, with reports", 1, False, STREAM),
    "away": ("a frame across two instances, no reports", 2, True, [*STREAM, "--no-reports", "--fps=10"]),
    "handshake": ("a handshake and goodbye", 1, False, ["storm", "--rate=20", "--warmup=1s"]),
    "second": ("a second without traffic", 1, False, ["idle", "--warmup=1s"]),
}


def run(program, part, users, seconds, folder):
    """Instructions of all instances, and how often the thing was done."""
    _, instances, has_redis, load = PARTS[part]
    outs = [folder / f"{program.name}.{part}.{seconds}s.{number}" for number in range(instances)]
    with Bench() as bench:
        redis_url = f"redis://127.0.0.1:{bench.redis().port}" if has_redis else None
        servers = [
            bench.relay(redis_url, ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", program, "serve"])
            for out in outs
        ]
        # The figures of a process are not asked for: rustix finds no clock under valgrind, and the program ends.
        results = bench.load(load[0], servers, f"--duration={seconds}s", f"--users={users}", *load[1:], reads=None)
    totals = [int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)[1]) for out in outs]
    match part:
        case "handshake":
            done = sum(point["welcomed"] for point in results["timeline"])
        case "second":
            done = seconds
        case _:
            done = results["figures"]["delivered"]
    return sum(totals), done


def slope(program, part, users, folder):
    (few, before), (many, after) = (run(program, part, users, seconds, folder) for seconds in (SHORT, LONG))
    cost = (many - few) / (after - before)
    say(f"{program.name}: {PARTS[part][0]}: {cost:,.0f} ({after - before:,.0f} of them)")
    return cost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, default=[])
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("programs", nargs="*", type=Path, default=[measure.PROGRAM])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="duorelay-") as folder:
        folder = given.keep or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            [PARTS[part][0], *(f"{slope(program.resolve(), part, given.users, folder.resolve()):,.0f}" for program in given.programs)]
            for part in given.part or PARTS
        ]
    print(table(["instructions of the servers", *(program.name for program in given.programs)], rows))


main()
