#!/bin/sh
# From raw rollouts of a robot of your own to plans that its simulator carries out; see docs/own_robot.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ebmtraj=${EBMTRAJ:-ebmtraj} python=${PYTHON:-python3} out=${OUT:-own-robot}
mkdir -p "$out" && cd "$out"
export PYTHONPATH="${PYTHONPATH:-}${PYTHONPATH:+:}$here" # where own_cost.py lies

$python "$here/own_rollouts.py" rollouts.npz "${EPISODES:-400}"                                 # yours instead: any loop that ends in numpy.savez
$ebmtraj data import rollouts.npz robot.zarr --format npz --env Reacher-v5                      # what the numbers are, the simulator says
$ebmtraj train sequence --data robot.zarr --run plan --set training.steps="${STEPS:-3000}"      # an energy of transitions, and what leads from one to the next
$ebmtraj plan plan --task "reach when=end" --episodes "${TRIES:-24}" --steps "${LENGTH:-30}"    # carried out in the simulator
$ebmtraj plan plan --task "reach when=end + own_cost:slowly weight=0.01" --own-code --episodes "${TRIES:-24}" --steps "${LENGTH:-30}"
$ebmtraj report plan --data robot.zarr --out report.html ${PICTURES:-}                          # all of it on one page
