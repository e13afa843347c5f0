#!/usr/bin/env bash
# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# Style checks, tests, build and demo of the fork. `./runtests.sh --help` lists the flags.

set -euo pipefail

usage_line="usage: ./runtests.sh [-u] [-f] [-q] [--autofix] [--mypy] [--coverage] [--disttests] [--net] [--demo] [--docs] [-b]"

usage() {
  cat <<HELP
$usage_line
                     [-c] [--black] [--isort] [--flake8] [--ruff] [--copyright] [--list_tests] [--torch VERSION]
                     [--dryrun] [-v] [-h]

Tests
  -u, --unittests    every test but those marked 'grid'
  -q, --quick        with -u: leave out the tests marked 'slow', set QUICKTEST=true
      --coverage     with -u: print a coverage report
      --disttests    only the tests marked 'distributed' (part of -u, too, but for those marked 'grid')
      --net          only the tests marked 'grid': grids of whole networks
      --list_tests   list the tests and stop
      --torch VERSION  with that torch, in an environment of its own, .venv-torch-VERSION; alone: the quick tests.
                       On Linux pip fetches gigabytes of CUDA libraries with it, unless PIP_EXTRA_INDEX_URL or
                       PIP_FIND_LINKS leads to a build for the CPU

Style
  -f, --codeformat   black, isort, flake8, ruff and license headers
      --autofix      what isort, black and ruff can fix; license headers (--formatfix is the same)
      --mypy         static types
      --black        black --check
      --isort        isort --check
      --flake8       flake8, with bugbear, comprehensions and pep8-naming
      --ruff         ruff check
      --copyright    license headers

Other
      --demo         the main job on a real scan: python -m demo
      --docs         the pages of docs/ with the reference of the interface, in build/docs; warnings are errors
  -b, --build        sdist and wheel in dist/
  -c, --clean        remove build outputs and caches; environments stay
      --dryrun       print the commands, run none of them
  -v, --version      versions of Python, torch and MONAI
  -h, --help         this text

Flags combine. The order is: clean, build, style, types, unit tests, distributed tests, grids, documents,
demo; the first step that fails ends the run.

MONAI_PY_EXE     the interpreter to use, as it is; without it, .venv is made from requirements-dev.txt
MONAI_TEST_JOBS  how many tests run at once (default 2)
HELP
}

wanted=" "        # the steps asked for, each between spaces
dryrun=""
quick=""
coverage=""
torch=""          # a version of torch, in place of the one in requirements-dev.txt
venv=.venv
python=""         # the interpreter of every step
python_ready=""
package_ready=""

want() { wanted+="$1 "; }
wants() { [[ $wanted == *" $1 "* ]]; }

die() { # MESSAGE [CODE]
  echo "runtests.sh: $1" >&2
  exit "${2:-1}"
}

heading() {
  if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    printf '\033[1;34m# %s\033[0m\n' "$1"
  else
    printf '# %s\n' "$1"
  fi
}

run() { # COMMAND...: run it, or print it in a dry run
  if [[ -z $dryrun ]]; then
    "$@"
  else
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    echo
  fi
}

step() { # STEP TITLE FUNCTION: when the step is asked for, run it; its failure ends the run
  wants "$1" || return 0
  local code=0
  heading "$2"
  "$3" || code=$?
  [[ $code == 0 ]] || die "$2: failed (exit code $code)" "$code"
}

# ---------------------------------------------------------------------------------------------- interpreter

choose_python() { # FOLDER: where the script was called, for a relative MONAI_PY_EXE
  case ${MONAI_PY_EXE:-} in
    "") python=$venv/bin/python ;;
    /*) python=$MONAI_PY_EXE ;;
    */*) python=$1/$MONAI_PY_EXE ;;
    *) python=$MONAI_PY_EXE ;;
  esac
}

is_recent_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

base_python() { # the Python that environments are made with
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
    if is_recent_python "$name"; then
      echo "$name"
      return
    fi
  done
  return 1
}

environment_place() { # what ties an environment to this folder and to one Python; empty when it does not run
  local version
  version=$("$venv"/bin/python -c 'import sys; print(sys.version.split()[0])' 2>/dev/null) || return 0
  echo "$PWD $version"
}

environment_inputs() { # one word that changes with whatever the environment was made from
  cat requirements-dev.txt setup.py setup.cfg pyproject.toml fork/*.py 2>/dev/null | cksum | tr ' ' '-'
}

refuse_foreign_environment() {
  if [[ -e $venv && ! -e $venv/.runtests && -n $(ls -A "$venv") ]]; then
    die "'$PWD/$venv' was not made by runtests.sh: remove it, or use it with MONAI_PY_EXE='$PWD/$venv/bin/python'"
  fi
}

create_environment() {
  local base
  base=$(base_python) || die "no Python 3.10 or newer found: install one, or name one in MONAI_PY_EXE"
  heading "making $venv with $(command -v "$base"), once; this takes minutes"
  # The empty stamp comes first and stays: what an interrupted run leaves behind is still known as ours.
  run mkdir -p "$venv"
  [[ -n $dryrun ]] || : >"$venv"/.runtests
  [[ ! -d $venv ]] || run find "$venv" -mindepth 1 -maxdepth 1 ! -name .runtests -exec rm -rf '{}' +
  run "$base" -m venv "$venv" || die "'$base -m venv $venv' failed: on Debian and Ubuntu, install python3-venv"
}

install_requirements() {
  local pip=("$python" -m pip --no-input --disable-pip-version-check install)
  [[ -t 1 ]] || pip+=(--quiet)
  [[ -n $dryrun ]] || : >"$venv"/.runtests
  local requirements=requirements-dev.txt
  if [[ -n $torch ]]; then
    requirements=$venv/requirements.txt
    run cp requirements-dev.txt "$requirements"
    run sed -i.pinned "s/^torch==.*/torch==$torch/" "$requirements"
    [[ -n $dryrun ]] || grep -qx "torch==$torch" "$requirements" || die "requirements-dev.txt pins no torch to replace"
  fi
  run "${pip[@]}" -r "$requirements" || die "$requirements could not be installed: pip says why, above"
  run "${pip[@]}" --no-build-isolation --no-deps -e . || die "the fork could not be installed: its message is above"
}

make_environment() { # it holds a stamp once it is complete; without it, or with another one, it is remade
  local stamp="" place inputs
  refuse_foreign_environment
  inputs=$(environment_inputs)
  place=$(environment_place)
  [[ ! -e $venv/.runtests ]] || stamp=$(<"$venv"/.runtests)
  if [[ -n $place && $stamp == "$place $inputs" ]]; then
    return
  fi
  if [[ -z $place || ${stamp% *} != "$place" ]]; then
    create_environment
  fi
  install_requirements
  [[ -n $dryrun ]] || echo "$(environment_place) $inputs" >"$venv"/.runtests
}

locked() { # COMMAND...: one at a time in this folder, where the system has flock
  if [[ -n $dryrun ]] || ! command -v flock >/dev/null; then
    "$@"
    return
  fi
  exec 9>>.venv.lock
  if ! flock -n 9; then
    heading "waiting for another runtests.sh in this folder"
    flock 9
  fi
  local code=0
  "$@" || code=$?
  exec 9>&-
  return "$code"
}

need_python() {
  [[ -z $python_ready ]] || return 0
  python_ready=yes
  if [[ -z ${MONAI_PY_EXE:-} ]]; then
    locked make_environment
  elif [[ -z $dryrun ]] && ! is_recent_python "$python"; then
    die "MONAI_PY_EXE='$MONAI_PY_EXE' does not run as Python 3.10 or newer: correct it, or unset it to use .venv"
  fi
}

package_folder() { # where `import monai` finds a package; empty for the folder monai/ here, which is not one
  "$python" -c 'import importlib.util as u; s = u.find_spec("monai"); print(s and s.origin or "")' | sed 's|/[^/]*$||'
}

amended_files() { # those of monai/ that are a part of what the package holds
  [[ ! -e setup.cfg ]] || sed -n '/^\[upstream:amends]/,/^\[/s|^\(monai/[^ ]*\) *=.*|\1|p' setup.cfg
}

check_package() { # an outdated copy or the plain release must not be tested in place of this tree
  local file folder amended
  folder=$(package_folder)
  [[ -n $folder ]] || die "$python has no monai: $remedy"
  amended=$(amended_files)
  while IFS= read -r file; do
    [[ $'\n'$amended$'\n' == *$'\n'$file$'\n'* ]] || cmp -s "$file" "$folder/${file#monai/}" ||
      die "$python imports '$folder', whose ${file#monai/} is not the one here: $remedy"
  done < <(find monai -name '*.py')
  [[ -z $amended ]] || "$python" -m fork compare "${folder%/*}" >/dev/null || die "$python imports another package: $remedy"
}

need_package() { # the interpreter imports the release with monai/ of this folder laid over it
  need_python
  [[ -z $package_ready ]] || return 0
  package_ready=yes
  local remedy="run '$python -m pip install -e .' in '$PWD'"
  # An interpreter of the user's may hold the package elsewhere; then there is nothing here to refresh.
  if [[ -z ${MONAI_PY_EXE:-} || (-z $dryrun && $(package_folder) == "$PWD"/build/*) ]]; then
    locked run "$python" -m fork build --link || die "the merged package could not be refreshed: the reason is above"
  fi
  [[ -n $dryrun ]] || check_package
}

module() { # NAME ARGUMENTS...: run a Python module that requirements-dev.txt brings
  need_python
  [[ -n $dryrun ]] || "$python" -c "import $1" 2>/dev/null ||
    die "$python has no module '$1': run '$python -m pip install -r requirements-dev.txt' in '$PWD'"
  run "$python" -m "$@"
}

# ---------------------------------------------------------------------------------------------------- steps

outputs=(build dist htmlcov .coverage .mypy_cache .pytest_cache .ruff_cache demo/output)

find_here() { # FIND-ARGUMENTS...: find among the files of the repository alone
  find . -type d \( -path ./.git -o -path ./build -o -path ./dist -o -name '.venv' -o -name '*_cache' \
    -o -exec test -f '{}/pyvenv.cfg' \; \) -prune -o "$@"
}

clean() {
  local folders=("${outputs[@]}") folder
  while IFS= read -r -d '' folder; do
    folders+=("$folder")
  done < <(find_here -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -print0)
  run rm -rf "${folders[@]}"
}

build() { module build --no-isolation; }

autofix() { module ruff check --fix . && module isort . && module black --quiet . && check_headers; }

black_check() { module black --quiet --check --diff .; }

isort_check() { module isort --check --diff .; }

flake8_check() { module flake8 .; }

ruff_check() { module ruff check .; }

has_header() { # FILE: it begins, after a shebang, with the ten lines under the shebang of this script
  local header
  header=$(sed -n 2,11p runtests.sh)
  [[ $(sed -e '1{/^#!/d;}' -e 11q "$1") == "$header"* ]]
}

check_headers() {
  if [[ -n $dryrun ]]; then
    echo "check_headers  # of every .py and .sh file"
    return
  fi
  local file missing=0
  while IFS= read -r -d '' file; do
    has_header "$file" && continue
    echo "$file: does not begin with the license header (lines 2 to 11 of runtests.sh)"
    missing=$((missing + 1))
  done < <(find_here -type f \( -name '*.py' -o -name '*.sh' -o -path './.ci/run' \) -print0)
  [[ $missing == 0 ]]
}

types() { need_package && module mypy; }

# xdist would hand out files with few tests last, which are the long ones: then one worker waits for the other.
tests() { # ARGUMENTS...: pytest, one thread and one file per worker
  need_package
  local parallel=()
  if [[ -n $dryrun ]] || "$python" -c 'import xdist' 2>/dev/null; then
    parallel=(-n "${MONAI_TEST_JOBS:-2}" --dist loadfile --no-loadscope-reorder)
  fi
  module pytest tests --durations=15 ${parallel[@]+"${parallel[@]}"} "$@"
}

unit_tests() {
  local marks="not grid" report=()
  [[ -z $quick ]] || marks+=" and not slow"
  [[ -z $coverage ]] || report=(--cov=monai --cov=fork --cov-report=term)
  tests -m "$marks" ${report[@]+"${report[@]}"}
}

distributed_tests() { tests -m distributed; }

network_grids() {
  local code=0
  tests -m grid || code=$?
  if [[ $code == 5 ]]; then
    echo "no test is marked 'grid' yet: nothing to run"
    code=0
  fi
  return "$code"
}

list_tests() { need_package && module pytest tests --collect-only -q; }

docs() { need_package && module sphinx -q -W --keep-going -b html docs build/docs; }

demo() { need_package && run "$python" -m demo; }

versions() { # of the interpreter as it is: nothing is made or installed for it
  [[ -n ${MONAI_PY_EXE:-} || -x $python ]] || python=$(base_python) || die "no Python 3.10 or newer found"
  run "$python" - <<'PYTHON' || die "'$python' does not run: correct MONAI_PY_EXE, or unset it to use .venv"
import platform
from importlib.metadata import PackageNotFoundError, version

print("python", platform.python_version())
for name in ("torch", "monai"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "not installed")
PYTHON
}

# ----------------------------------------------------------------------------------------------------- main

parse() {
  while (($#)); do
    case $1 in
      -u | --unittests | --utests) want unit ;;
      -q | --quick) quick=yes ;;
      --coverage) coverage=yes ;;
      --disttests) want dist ;;
      --net) want net ;;
      --list_tests) want list ;;
      --torch)
        [[ ${2:-} =~ ^[0-9][0-9a-z.+]*$ ]] || die "--torch needs a version, such as 2.8.0, got '${2:-}'"
        torch=$2
        venv=.venv-torch-$torch
        shift
        ;;
      -f | --codeformat) want black && want isort && want flake8 && want ruff && want headers ;;
      --autofix | --formatfix) want autofix ;;
      --black) want black ;;
      --isort) want isort ;;
      --flake8) want flake8 ;;
      --ruff) want ruff ;;
      --copyright) want headers ;;
      --mypy) want types ;;
      --demo) want demo ;;
      --docs) want docs ;;
      -b | --build) want build ;;
      -c | --clean) want clean ;;
      --dryrun) dryrun=yes ;;
      -v | --version) want versions ;;
      -h | --help) want help ;;
      *)
        echo "$usage_line" >&2
        die "unknown flag '$1': ./runtests.sh --help lists the flags"
        ;;
    esac
    shift
  done
}

check_request() {
  if [[ -n $torch && -n ${MONAI_PY_EXE:-} ]]; then
    die "--torch makes an environment, MONAI_PY_EXE='$MONAI_PY_EXE' names another one: give one of them"
  fi
  if [[ -n $torch && $wanted == " " ]]; then
    want unit
    quick=yes
  fi
  if [[ -n $quick$coverage ]] && ! wants unit; then
    die "-q and --coverage change the unit tests: give -u, too"
  fi
  if [[ $wanted == " " ]]; then
    usage
    exit 1
  fi
}

main() {
  local called_from=$PWD
  CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")"
  parse "$@"
  if wants help; then
    usage
    exit
  fi
  check_request
  choose_python "$called_from"
  if wants versions; then
    versions
    exit
  fi
  export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
  [[ -z $quick ]] || export QUICKTEST=true

  step list "list of tests" list_tests
  ! wants list || exit 0
  step clean "clean" clean
  step build "build" build
  step autofix "fix the code format" autofix
  step black "black" black_check
  step isort "isort" isort_check
  step flake8 "flake8" flake8_check
  step ruff "ruff" ruff_check
  step headers "license headers" check_headers
  step types "types" types
  step unit "unit tests" unit_tests
  step dist "distributed tests" distributed_tests
  step net "network grids" network_grids
  step docs "documents" docs
  step demo "demo" demo
}

main "$@"
