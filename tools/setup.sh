# Shared by quickstart.sh and test.sh: what the machine needs, the build, the text. Sourced, never run.
# shellcheck shell=bash

set -euo pipefail
export LC_ALL=C.UTF-8

REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly REPO_ROOT
readonly KJV=data/kjv.txt
readonly KJV_BYTES=4404412
readonly KJV_SHA256=cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d

# Any one package of an "a|b" entry will do; the first is what gets installed.
readonly PACKAGES=(
  g++ cmake ninja-build python3
  'libopenblas-pthread-dev|libopenblas-dev|libopenblas-openmp-dev|libopenblas-serial-dev'
  libeigen3-dev libfmt-dev doctest-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libpcre2-dev
  bible-kjv bible-kjv-text
)

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  readonly BOLD=$'\e[1m' RESET=$'\e[0m'
else
  readonly BOLD='' RESET=''
fi

say() { printf '%s==> %s%s\n' "$BOLD" "$*" "$RESET"; }
die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  if (($# > 1)); then printf '  %s\n' "${@:2}" >&2; fi
  exit 1
}

# A stopped step has printed its own last words; this says how to go on.
trap 'printf "\n%s: stopped; run it again to go on from here\n" "${0##*/}" >&2; exit 130' INT
trap 'exit 143' TERM

# True on Debian and on what is made from it, such as Ubuntu.
is_debian() {
  [[ -r /etc/os-release ]] || return 1
  local ids
  # shellcheck source=/dev/null
  ids=$(. /etc/os-release && printf ' %s %s ' "${ID:-}" "${ID_LIKE:-}")
  [[ $ids == *' debian '* ]] && command -v apt-get >/dev/null && command -v dpkg-query >/dev/null
}

is_installed() {
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

install_packages() {
  local entry package found missing=()
  local alternatives names=()
  for entry in "${PACKAGES[@]}"; do names+=("${entry%%|*}"); done
  is_debian || die 'this is neither Debian nor made from it, so I do not know how to install what is needed.' \
    'Debian calls the packages:' "${names[*]}" \
    'With all of that installed: cmake --preset release && cmake --build --preset release && ctest --preset release'

  for entry in "${PACKAGES[@]}"; do
    found=
    IFS='|' read -ra alternatives <<<"$entry"
    for package in "${alternatives[@]}"; do
      if is_installed "$package"; then found=yes; fi
    done
    [[ $found ]] || missing+=("${alternatives[0]}")
  done
  ((${#missing[@]})) || return 0

  say "Installing with apt-get: ${missing[*]}"
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die 'packages are missing, and there is neither root nor sudo. As root, run:' \
      "apt-get update && apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update || printf 'apt-get update failed; going on with the package lists at hand\n' >&2
  "${apt[@]}" install --no-install-recommends --yes "${missing[@]}" </dev/null >/dev/null ||
    die 'apt-get could not install what is needed; to see why, run:' "apt-get install ${missing[*]}"
}

# `cmake --preset` with workflows, and C++20, need what Debian 12 has.
check_tools() {
  local have oldest
  have=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
  oldest=$(printf '%s\n' 3.25 "$have" | sort -V | head -n 1)
  [[ $oldest == 3.25 ]] || die "CMake 3.25 or newer is needed, this is $have (Debian 12 and Ubuntu 24.04 have it)"
}

# The compiler takes up to 1 GB a file: no more jobs than the memory carries.
build_jobs() {
  local cores memory_gb
  cores=$(nproc)
  memory_gb=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
  ((memory_gb >= 1)) || memory_gb=1
  echo $((cores < memory_gb ? cores : memory_gb))
}

# build_preset NAME TARGET: configures one preset of CMakePresets.json and builds that much of it.
build_preset() {
  say "Building preset $1"
  cmake --preset "$1" >"$REPO_ROOT/build/configure-$1.log" 2>&1 || {
    tail -n 40 "$REPO_ROOT/build/configure-$1.log" >&2
    die "configuring preset $1 failed; the whole log is build/configure-$1.log"
  }
  cmake --build --preset "$1" --target "$2" --parallel "$(build_jobs)"
}

# The King James text, one verse a line, printed by Debian's bible-kjv.
prepare_text() {
  local sum
  if [[ -f $KJV && $(stat -c %s "$KJV") == "$KJV_BYTES" ]]; then return 0; fi
  say "Writing the King James text to $KJV"
  mkdir -p data
  bible -f gen1:1-rev22:21 </dev/null >"$KJV.part" || die "the command 'bible -f gen1:1-rev22:21' failed"
  [[ $(stat -c %s "$KJV.part") == "$KJV_BYTES" ]] ||
    die "the King James text has $(stat -c %s "$KJV.part") bytes instead of $KJV_BYTES" \
      "Either package bible-kjv-text has changed, or the disk is full; see $KJV.part"
  sum=$(sha256sum "$KJV.part")
  [[ ${sum%% *} == "$KJV_SHA256" ]] ||
    printf 'note: the text differs from the one of the measured results (SHA-256 %s)\n' "${sum%% *}" >&2
  mv "$KJV.part" "$KJV"
}

# set_up TARGET: everything up to a built TARGET (margay_cli: the command; all: the tests too) and the text. Leaves the
# shell in the root of the repository.
set_up() {
  cd "$REPO_ROOT"
  mkdir -p build
  install_packages
  check_tools
  build_preset release "$1"
  prepare_text
}
