"""Render a chart with Helm's own engine, in a process of its own: Go's runtime stays out of ours.

Reads {"chart": path, "values": {...}} from its input; prints {"files": {name: text}, "lint": [...]}
or {"error": text}. To be started without rights and without a network, which it does not need.
"""

import json
import sys

import helm_python


def main() -> None:
    """Do one request."""
    request = json.load(sys.stdin)
    try:
        chart = helm_python.Chart.load(request["chart"])
        files = chart.render(request["values"], name="kersey", namespace="kersey")
        report = helm_python.lint(request["chart"], request["values"], strict=True)
    except helm_python.HelmError as error:
        print(json.dumps({"error": str(error)}))
        return
    found = [each["error"] for each in report["messages"] if each["severity"] > 1]
    print(json.dumps({"files": files, "lint": [*found, *report["errors"]]}))


if __name__ == "__main__":
    main()
