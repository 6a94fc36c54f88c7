#!/usr/bin/env python3
"""Asks a Prometheus every query of every dashboard, and fails where one does not parse or has no data.

usage: ask.py PROMETHEUS DIRECTORY_OF_DASHBOARDS
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

# Panels that may be empty, and why.
EMPTY = {
    "GPU utilisation": "no GPU",
    "GPU memory": "no GPU",
    "GPU temperature": "no GPU",
    "GPU power": "no GPU",
    "GPU clocks": "no GPU",
    "GPU throttled": "no GPU",
}
# What Grafana puts in the place of variables, with all chosen.
VARIABLES = {"$job": ".+", "$run": ".+", "$worker": ".+", "$__rate_interval": "15s"}
# Long enough to reach back to before the worker was killed.
SECONDS = 120


def filled(query):
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def queries(board):
    """Title and query of all panels, marks and variables."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], filled(target["expr"])
    for mark in board["annotations"]["list"]:
        yield mark["name"], filled(mark["expr"])


def parses(all_queries):
    """promtool reads every query as the expression of a rule."""
    rules = [{"record": f"query:{i}:x", "expr": query} for i, (_, query) in enumerate(all_queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": "dashboards", "rules": rules}]}, file)
        file.flush()
        subprocess.run(["promtool", "check", "rules", "--lint=none", file.name], check=True)


def get(url, path, **arguments):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}") as answer:
        return json.load(answer)["data"]


def has_data(url, query):
    now = time.time()
    data = get(url, "query_range", query=query, start=now - SECONDS, end=now, step=1)
    values = [value for series in data["result"] for _, value in series["values"]]
    return any(value not in ("NaN", "+Inf", "-Inf") for value in values)


def main(url, directory):
    boards = [json.loads(path.read_text()) for path in sorted(pathlib.Path(directory).glob("*.json"))]
    assert boards, f"no dashboards in {directory}"
    parses([query for board in boards for query in queries(board)])
    failed = 0
    for board in boards:
        for variable in board["templating"]["list"][1:]:
            metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            if not get(url, "series", **{"match[]": filled(metric)}):
                failed += 1
                print(f"no values  {board['title']}: variable {variable['name']}")
        asked = list(queries(board))
        empty = [(title, query) for title, query in asked if not has_data(url, query)]
        for title, query in empty:
            if title not in EMPTY:
                failed += 1
                print(f"no data  {board['title']}: {title}: {query}")
        for title in EMPTY:
            if title in {title for title, _ in asked} - {title for title, _ in empty}:
                print(f"note  {board['title']}: {title} has data here")
        print(f"ok  {board['title']}: {len(asked) - len(empty)} of {len(asked)} queries return data")
    sys.exit(1 if failed else 0)


main(*sys.argv[1:])
