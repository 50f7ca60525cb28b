#!/usr/bin/env bash
# Runs one command as N processes on this machine, as one job.
set -uo pipefail

usage() {
  cat <<HELP
usage: launch/local.sh [options] [--] COMMAND...

  launch/local.sh --processes 2 merging merge --config configs/merge/ties.py ...

The processes meet on a free port of this machine. Process 0 prints here, the others
into files. When one fails, the rest are stopped and its status is returned. Status 75
(preempted) starts all of them again: the command goes on where it was.

  --processes N    how many (PROCESSES, ${PROCESSES:-2})
  --logs DIR       where the others print (LOGS, ${LOGS:-logs})
  --restarts N     how often to start again after status 75 (RESTARTS, ${RESTARTS:-3})
  --dry_run        print what would be run
HELP
}

fail() {
  echo "local.sh: $*" >&2
  exit 2
}

processes=${PROCESSES:-2} logs=${LOGS:-logs} restarts=${RESTARTS:-3} dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    --processes) processes=${2:-} && shift ;;
    --logs) logs=${2:-} && shift ;;
    --restarts) restarts=${2:-} && shift ;;
    --dry_run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    -*) fail "unknown option $1; see --help" ;;
    *) break ;;
  esac
  shift || fail "the last option needs a value; see --help"
done
[ $# -gt 0 ] || fail "name the command to run; see --help"
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes must be a number, not '$processes'"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts must be a number, not '$restarts'"

free_port() {
  local port
  for port in $(shuf -i 20000-32000 -n 50); do
    # Nobody answers there: bash's own sockets need no other tool.
    (: </dev/tcp/localhost/"$port") 2>/dev/null || { echo "$port" && return; }
  done
  fail "found no free port"
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < processes; i++)); do
    to=$([ "$i" -eq 0 ] || echo " >$logs/process.$i.log")
    echo "MERGING_COORDINATOR=localhost:PORT MERGING_PROCESSES=$processes" \
      "MERGING_PROCESS=$i ${*@Q}$to"
  done
  exit
fi

pids=()
stopping=
stop() {
  stopping=1
  [ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null
}
trap stop TERM INT

run_once() {
  local port i status first=0 left
  port=$(free_port) || return 2
  pids=()
  for ((i = 0; i < processes; i++)); do
    (
      export MERGING_COORDINATOR=localhost:$port MERGING_PROCESSES=$processes
      export MERGING_PROCESS=$i
      [ "$i" -eq 0 ] || exec >"$logs/process.$i.log" 2>&1
      exec "$@"
    ) &
    pids+=($!)
  done
  left=$processes
  while [ "$left" -gt 0 ]; do
    wait -n -p ended "${pids[@]}"
    status=$?
    # A signal to this script ends `wait`, not a process.
    [ -n "${ended:-}" ] || continue
    for i in "${!pids[@]}"; do
      [ "${pids[i]}" = "$ended" ] || continue
      unset "pids[i]"
      left=$((left - 1))
      if [ "$status" -ne 0 ] && [ "$first" -eq 0 ]; then
        first=$status
        echo "local.sh: process $i ended first, with status $status" >&2
        [ "$i" -eq 0 ] || tail -n 5 "$logs/process.$i.log" >&2
        # The others may be waiting for it; they have a minute to end by themselves.
        [ ${#pids[@]} -gt 0 ] || continue
        kill -TERM "${pids[@]}" 2>/dev/null
        (
          trap 'kill $!; exit' TERM
          sleep 60 &
          wait $!
          kill -KILL "${pids[@]}"
        ) >/dev/null 2>&1 &
        killer=$!
      fi
    done
    ended=
  done
  [ -z "${killer:-}" ] || kill "$killer" 2>/dev/null
  killer=
  return "$first"
}

mkdir -p "$logs" || exit 1
for ((attempt = 0; ; attempt++)); do
  run_once "$@"
  status=$?
  if [ "$status" -ne 75 ] || [ -n "$stopping" ] || [ "$attempt" -ge "$restarts" ]; then
    exit "$status"
  fi
  echo "local.sh: preempted; going on ($((attempt + 1)) of $restarts)" >&2
done
