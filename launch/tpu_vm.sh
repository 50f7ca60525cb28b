#!/usr/bin/env bash
# Runs one command on all workers of a Cloud TPU: queue, wait, install, run, tear down.
set -uo pipefail

usage() {
  cat <<HELP
usage: launch/tpu_vm.sh --name NAME --zone ZONE --accelerator_type TYPE [options] \\
           -- COMMAND...

  launch/tpu_vm.sh --name ties --zone us-east5-b --accelerator_type v6e-16 --spot \\
      -- merging merge --config configs/merge/ties.py --config.output=/mnt/shared/out

Asks for the TPU as a queued resource, waits for it, copies the committed tree to all
workers, installs it with a Python of its own, and runs the command on each. Status 75
(preempted), a lost connection and a lost TPU start it again: the command goes on where
it was. What this script created is deleted at its end, however it ends, and nothing
else. Run again after a crash of this machine, it finds its own TPU and goes on. Data and
outputs must be on storage that all workers see. Workers act as the service account of
the TPU: no secret is passed.

  --name NAME             of the queued resource and its nodes (NAME, ${NAME:-none})
  --zone ZONE             (ZONE, ${ZONE:-none})
  --project PROJECT       (PROJECT, ${PROJECT:-that of gcloud})
  --accelerator_type T    such as v6e-16 (ACCELERATOR_TYPE, ${ACCELERATOR_TYPE:-none})
  --slices N              more than 1: multislice (SLICES, ${SLICES:-1})
  --runtime_version V     (RUNTIME_VERSION, ${RUNTIME_VERSION:-looked up in the zone})
  --spot | --reserved     capacity; on demand without (CAPACITY, ${CAPACITY:-none})
  --service_account A     (SERVICE_ACCOUNT, ${SERVICE_ACCOUNT:-default})
  --setup COMMAND         runs on each worker first, such as mounting storage
                          (SETUP, ${SETUP:-none})
  --restarts N            (RESTARTS, ${RESTARTS:-10})
  --tries N               of a call that fails, and of ssh to young workers
                          (TRIES, ${TRIES:-6})
  --poll SECONDS          between two looks at the queue (POLL, ${POLL:-30})
  --keep                  leave the TPU up at the end; it costs money
  --dry_run               print every call in order, and make none

TPU7x (Ironwood) is on GKE only: see jobset.yaml.
HELP
}

name=${NAME:-} zone=${ZONE:-} project=${PROJECT:-} type=${ACCELERATOR_TYPE:-}
slices=${SLICES:-1} runtime=${RUNTIME_VERSION:-} capacity=${CAPACITY:-}
account=${SERVICE_ACCOUNT:-} setup=${SETUP:-} restarts=${RESTARTS:-10}
tries=${TRIES:-6} poll=${POLL:-30} keep='' dry_run=''

say() { echo "tpu_vm.sh: $*" >&2; }
fail() { # the user's mistake
  say "$*"
  exit 2
}
give_up() { # give_up STATUS WHY
  say "${*:2}"
  exit "$1"
}

while [ $# -gt 0 ]; do
  case $1 in
    --name) name=${2:-} && shift ;;
    --zone) zone=${2:-} && shift ;;
    --project) project=${2:-} && shift ;;
    --accelerator_type) type=${2:-} && shift ;;
    --slices) slices=${2:-} && shift ;;
    --runtime_version) runtime=${2:-} && shift ;;
    --spot) capacity=spot ;;
    --reserved) capacity=reserved ;;
    --service_account) account=${2:-} && shift ;;
    --setup) setup=${2:-} && shift ;;
    --restarts) restarts=${2:-} && shift ;;
    --tries) tries=${2:-} && shift ;;
    --poll) poll=${2:-} && shift ;;
    --keep) keep=1 ;;
    --dry_run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option $1; see --help" ;;
  esac
  shift || fail "the last option needs a value; see --help"
done
[ -n "$name" ] && [ -n "$zone" ] && [ -n "$type" ] && [ $# -gt 0 ] ||
  fail "needs --name, --zone, --accelerator_type and -- COMMAND; see --help"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices must be a number, not '$slices'"
[[ $capacity =~ ^(|spot|reserved)$ ]] || fail "CAPACITY is spot, reserved or nothing"

where=(--zone="$zone" --quiet)
[ -z "$project" ] || where+=(--project="$project")
everywhere=("${where[@]}" --node=all --worker=all)
# Says that a queued resource of this name is ours, also to a later run.
mark=${XDG_STATE_HOME:-$HOME/.local/state}/merging/tpu_vm/$project.$zone.$name
scratch=SCRATCH
[ -n "$dry_run" ] || scratch=$(mktemp -d)
runs=0

queue() { call compute tpus queued-resources "$@"; }

call() {
  if [ -n "$dry_run" ]; then
    printf 'gcloud' && printf ' %q' "$@" && echo
  else
    gcloud "$@"
  fi
}

again() { # again COMMAND...: until it works, at most $tries times, pausing longer
  local try # "return" alone would, in a trap, return the status of before it
  for ((try = 1; try <= tries; try++)); do
    "$@" && return 0
    [ "$try" -eq "$tries" ] || sleep $((poll < 5 * try ? poll : 5 * try))
  done
  return 1
}

state() { # of the queued resource; "none" where there is none
  [ -z "$dry_run" ] || { echo ACTIVE && return; }
  local found
  if found=$(queue describe "$name" "${where[@]}" --format='value(state.state)' \
    2>"$scratch/describe"); then
    echo "${found:-UNKNOWN}"
  elif grep -qiE 'not.?found|404' "$scratch/describe"; then
    echo none
  else
    cat "$scratch/describe" >&2
    return 1
  fi
}

runtime_version() {
  local pattern versions
  case $type in
    v6e-*) pattern=tpuv6e ;;
    v5litepod-*) pattern=tpuv5-lite ;;
    v5p-*) pattern=tpuv5 ;;
    v[234]-*) pattern=tpu-ubuntu2204-base ;;
    *) fail "which runtime version is for $type? Name it: --runtime_version" ;;
  esac
  versions=$(gcloud compute tpus tpu-vm versions list "${where[@]}" \
    --format='value(version)') ||
    give_up 1 "cannot list the runtime versions of $zone"
  grep -E "(^|-)$pattern\$" <<<"$versions" | tail -n 1 | grep . ||
    fail "no runtime version of $zone ends in $pattern; choose with" \
      "--runtime_version among:"$'\n'"$versions"
}

create() {
  local what=(--accelerator-type="$type" --runtime-version="$runtime")
  if [ "$slices" -eq 1 ]; then
    what+=(--node-id="$name")
  else
    what+=(--node-count="$slices" --node-prefix="$name")
  fi
  [ -z "$capacity" ] || what+=("--$capacity")
  [ -z "$account" ] || what+=(--service-account="$account")
  what+=(--async)
  [ -z "$dry_run" ] || { queue create "$name" "${where[@]}" "${what[@]}" && return; }
  # Marked before, so that a crash in between leaves nothing unclaimed.
  { mkdir -p "${mark%/*}" && touch "$mark"; } || exit 1
  queue create "$name" "${where[@]}" "${what[@]}" 2>"$scratch/create" && return 0
  cat "$scratch/create" >&2
  local found
  found=$(state) || return 1 # not even that is known: the mark stays, and we ask again
  [ "$found" = none ] || return 0 # a call that failed, and worked all the same
  rm -f "$mark"
  ! grep -qiE 'quota|permission|invalid|unauthenticated' "$scratch/create" ||
    give_up 1 "refused (see above); nothing was created"
  return 1
}

delete() {
  queue delete "$name" "${where[@]}" --force || [ "$(state)" = none ] || return 1
  rm -f "$mark"
}

tear_down() {
  status=$?
  trap - EXIT
  trap '' TERM INT
  if [ -n "$dry_run" ]; then
    [ -n "$keep" ] || queue delete "$name" "${where[@]}" --force
  elif [ -e "$mark" ]; then
    if [ -n "$keep" ]; then
      say "left up: gcloud compute tpus queued-resources delete $name ${where[*]} --force"
    elif ! again delete; then
      say "COULD NOT DELETE $name, which costs money. Do it by hand:"
      say "  gcloud compute tpus queued-resources delete $name ${where[*]} --force"
      status=1
    fi
  fi
  [ -n "$dry_run" ] || rm -rf "$scratch"
  exit "$status"
}

obtain() { # wait until the TPU is ours and up, asking for it as often as needed
  local now
  while :; do
    now=$(again state) || give_up 1 "cannot look at the queue"
    case $now in
      ACTIVE) return ;;
      none)
        again create || give_up 1 "cannot ask for a TPU"
        ;;
      FAILED)
        queue describe "$name" "${where[@]}" --format='yaml(state)' >&2
        give_up 1 "the queue gave up on it (see above)"
        ;;
      SUSPENDING | SUSPENDED)
        restart "it was taken away"
        again delete || give_up 1 "cannot delete what was taken away"
        ;;
      DELETING) sleep "$poll" ;;
      *)
        [ "$now" = "${before:-}" ] || say "waiting: $now"
        before=$now
        sleep "$poll"
        ;;
    esac
  done
}

restart() {
  runs=$((runs + 1))
  [ "$runs" -le "$restarts" ] || give_up 75 "$1, more often than --restarts $restarts"
  say "$1; going on ($runs of $restarts)"
}

on_all() { queue ssh "$name" "${everywhere[@]}" --command="$1"; }

install() {
  # uv brings an interpreter where the image's own is too old, as Ubuntu 22.04's is.
  # Every worker answers before anything is sent: young ones refuse ssh.
  again on_all true &&
    again queue scp "$scratch/merging.tar.gz" "$name:" "${everywhere[@]}" &&
    again on_all "flock merging.lock rm -rf merging-run && mkdir merging-run &&
tar -xzf merging.tar.gz -C merging-run && cd merging-run &&
python3 -m pip install --quiet --target .uv uv &&
.uv/bin/uv venv --quiet --python 3.12 .venv &&
.uv/bin/uv pip install --quiet '.[tpu,gcs]'" &&
    { [ -z "$setup" ] || again on_all "$setup"; }
}

run() { # the command on every worker; returns its worst status, or 255
  local remote
  # The lock: after a lost connection, what still runs there must end first. The status
  # is printed, for gcloud keeps none of several.
  remote="cd merging-run && export PATH=\$PWD/.venv/bin:\$PATH MERGING_CLUSTER=auto
flock ../merging.lock ${*@Q}
echo \"[worker status \$?]\""
  [ -z "$dry_run" ] || { on_all "$remote" && return; }
  on_all "$remote" 2>&1 | tee "$scratch/output"
  local statuses worst
  statuses=$(sed -nE 's/.*\[worker status ([0-9]+)\].*/\1/p' "$scratch/output")
  worst=$(sort -n <<<"${statuses:-255}" | tail -n 1)
  # A mistake or a fault counts for more than how the others ended because of it.
  case $'\n'$statuses$'\n' in
    *$'\n2\n'*) worst=2 ;;
    *$'\n1\n'*) worst=1 ;;
  esac
  return "$worst"
}

trap 'exit 143' TERM
trap 'exit 130' INT
trap tear_down EXIT
if [ -z "$dry_run" ]; then
  command -v gcloud >/dev/null || fail "there is no gcloud on the PATH"
  found=$(state) || give_up 1 "cannot look at the queue"
  if [ "$found" != none ] && [ ! -e "$mark" ]; then
    fail "there is a queued resource $name in $zone that this script did not create;" \
      "choose another --name"
  fi
  [ "$found" != none ] || rm -f "$mark"
  git -C "$(dirname "$0")/.." archive --format=tar.gz HEAD >"$scratch/merging.tar.gz" ||
    give_up 1 "cannot pack the committed tree"
  [ -n "$runtime" ] || runtime=$(runtime_version) || exit
else
  runtime=${runtime:-RUNTIME_VERSION}
  call compute tpus tpu-vm versions list "${where[@]}" '--format=value(version)'
  create
fi
while :; do
  obtain
  if install; then
    run "$@"
    status=$?
    case $status in
      0 | 1 | 2) exit "$status" ;;
      75) restart "preempted" ;;
      *) restart "the workers were lost (status $status)" ;;
    esac
  else
    [ "$(state)" != ACTIVE ] || give_up 1 "some workers cannot be set up (see above)"
    restart "it was taken away during the installation"
  fi
done
