"""The command line of the zoo benchmark: see `python -m benchmarks.zoo --help`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCHEMES = ("zero-2021", "zero-2022")
PRELOAD = ["benchmarks.zoo.one", "benchmarks.zoo.preload"]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description="Convert a slice of the model zoos, each model in a limited process, and write a table.",
        epilog="Rows are appended to --rows as they arrive; models that are in it already are not run again.",
    )
    add = parser.add_argument
    add("patterns", nargs="*", metavar="PATTERN", help="origin:name with wildcards, 'torchvision:*', 'timm:vit_*'")
    add("--list", action="append", default=[], type=Path, metavar="FILE", help="a MODEL and key=value arguments a line")
    add("--tiny", action="store_true", help="tiny configurations of transformers' model types")
    add("--family", action="store_true", help="only the smallest model of each family")
    add("--max-parameters", type=float, default=float("inf"), metavar="N", help="leave out larger models (1e8)")
    add("--scheme", action="append", metavar="NAME", help="repeatable; default zero-2021 and zero-2022")
    add("--until", choices=("inspect", "digest", "loaded"), default="loaded", help="how far each model goes")
    add("--validate", choices=("quick", "full", "none"), default="quick", help="checks on the way to `loaded`")
    add("--no-count", dest="count", action="store_false", help="do not count joins in a real forward")
    add("--jobs", type=int, default=1, metavar="N", help="processes at a time")
    add("--memory", type=float, default=12.0, metavar="GiB", help="address space of one process; 0 is no limit")
    add("--seconds", type=float, default=600.0, metavar="S", help="time for one row")
    add("--rows", type=Path, metavar="FILE", help="JSON lines to append to and to go on from")
    add("--redo", choices=("none", "failed", "all"), default="none", help="which of the rows in --rows to run again")
    add("--json", type=Path, metavar="FILE", help="totals and rows")
    add("--markdown", type=Path, metavar="FILE", help="the table")
    add("--models", action="store_true", help="the table has a line for every model")
    add("--names", action="store_true", help="print what would run and stop")
    add("--sizes", type=Path, metavar="FILE", help="JSON: numbers of parameters, kept from one run to the next")
    options = parser.parse_args(arguments)
    if not (options.patterns or options.list or options.tiny or options.rows):
        parser.error("no pattern, no list and no rows to make a table of")
    return options


def sizes_of(models: list[Any], path: Path | None) -> dict[str, int]:
    """Numbers of parameters by title, read from the file and added to it where they are not known."""
    from .slices import parameters_of

    known: dict[str, int] = json.loads(path.read_text()) if path and path.exists() else {}
    for i, model in enumerate(models):
        if model.title not in known:
            if sys.stderr.isatty():
                print(f"\rcounting parameters {i + 1}/{len(models)}", end="", file=sys.stderr)
            count = parameters_of(model)
            if count is not None:
                known[model.title] = count
    if path:
        path.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")
    return known


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    if __name__ == "__main__":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))  # ends the models' processes, too
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # before torch is imported; N processes must not fight for the cores
    from . import pool, slices, table
    from .one import Task, measure

    try:
        models = slices.choose(options.patterns, options.list)
        models += slices.tiny_transformers() if options.tiny else []
    except (ValueError, OSError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    if options.family or options.max_parameters < float("inf"):
        sizes = sizes_of(models, options.sizes)
        models = slices.limited(models, options.max_parameters, sizes)
        if options.family:
            models = slices.one_per_family(models, sizes)
    if options.names:
        print("\n".join(model.title for model in models))
        return 0
    schemes = tuple(options.scheme or SCHEMES)
    rows_file = options.rows or Path(tempfile.mkstemp(suffix=".jsonl")[1])
    done = {
        (row["model"], row["scheme"])
        for row in table.read_rows(rows_file)
        if options.redo == "none" or (options.redo == "failed" and row["status"] in table.GOOD)
    }
    with tempfile.TemporaryDirectory() as scratch:
        tasks = [
            Task(model, left, options.until, options.validate, options.count, options.max_parameters, scratch)
            for model in models
            if (left := tuple(scheme for scheme in schemes if (model.title, scheme) not in done))
        ]
        write_rows(pool, measure, tasks, options, rows_file)
    chosen = {model.title for model in models}
    rows = [row for row in table.read_rows(rows_file) if not chosen or row["model"] in chosen]
    if options.json:
        options.json.write_text(table.as_json(rows), encoding="utf-8")
    markdown = table.as_markdown(rows, every_row=options.models)
    if options.markdown:
        options.markdown.write_text(markdown, encoding="utf-8")
    else:
        print(markdown)
    if not options.rows:
        rows_file.unlink()
    return int(any(row["status"] not in table.GOOD for row in rows))


def write_rows(pool: Any, measure: Any, tasks: list[Any], options: argparse.Namespace, path: Path) -> None:
    """Runs the tasks; a process that ends before all of its rows came leaves a row for each that is missing."""
    began, count = time.monotonic(), 0
    with path.open("a", encoding="utf-8") as stream:

        def keep(row: dict[str, Any]) -> None:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            where = f"{row['status']} in {row.get('stage')}: {row.get('cause')}"
            mark = row["status"] if row["status"] in ("ok", "skipped") else where
            print(f"{time.monotonic() - began:7.0f} s  {row['model']}  {row['scheme']}  {mark[:200]}", file=sys.stderr)

        for ended in pool.run(
            measure,
            tasks,
            jobs=options.jobs,
            memory=options.memory,
            seconds=options.seconds,
            preload=PRELOAD,
            on_row=keep,
        ):
            count += 1
            came = {row["scheme"] for row in ended.rows}
            for scheme in ended.task.schemes:
                if scheme not in came:
                    model = ended.task.model
                    keep(
                        {
                            "model": model.title,
                            "zoo": model.zoo,
                            "family": model.family,
                            "scheme": scheme,
                            "until": ended.task.until,
                            "status": "failed",
                            "stage": ended.stage,
                            "cause": ended.cause or "Ended: without a result",
                            "seconds": round(ended.seconds, 2),
                        }
                    )
            if sys.stderr.isatty():
                print(f"{count}/{len(tasks)}", end="\r", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
