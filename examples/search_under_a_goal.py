"""Let a search find the cheapest recipe whose file fits an Ethos-U55 and loses at most one point of accuracy."""

import json
import subprocess

# Candidates are tried from the cheapest on. The search stops at the first that meets all goals; with 72k of flash it
# has to go on to sparse recipes, which takes minutes.
COMMAND = [
    *("tfmot-ops", "search", "--model", "resnet8", "--dataset", "digits", "--epochs", "4"),
    *("--target", "ethos_u55_128", "--max-drop", "1", "--max-flash", "90k"),
    *("--output", "search", "--no-tracking", "--json"),
]
done = subprocess.run(COMMAND, check=False, stdout=subprocess.PIPE, text=True)
if done.returncode not in {0, 4}:  # 4: no candidate meets all goals; the nearest ones are in the output, too
    raise SystemExit(done.returncode)
found = json.loads(done.stdout)

for candidate in found["candidates"]:
    print(candidate["name"])
    for name, goal in candidate["goals"].items():
        print(f"  {name}: required {goal['required']}, received {goal['received']}")
print("take:", found["chosen"] or "none, no candidate meets all goals")
print("the candidates as an interactive page:", found["page"])
