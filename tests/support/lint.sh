#!/bin/sh
# Every static check of this repository; any finding fails it. A tool that cannot be had is skipped with one line.
set -eu

cd -P "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"

step() {
    printf '%s\n' "$1"
    shift
    "$@"
}

skip() { printf 'skipped: %s\n' "$*"; }

has() { command -v "$1" >/dev/null 2>&1; }

# Files whose first line names a shell.
shell_files() {
    for folder in server client tests .ci; do
        [ ! -d "$folder" ] || find "$folder" -name data -prune -o -type f ! -name '*.py' -exec \
            awk 'FNR == 1 && /^#!.*[\/ ](ba|da)?sh( |$)/ { print FILENAME } { nextfile }' {} +
    done
}

# The server's programs in Python, which mostly have no suffix.
server_python() {
    find server -name data -prune -o -type f -exec \
        awk 'FNR == 1 && (/^#!.*\/python3/ || FILENAME ~ /\.py$/) { print FILENAME } { nextfile }' {} +
}

yaml_files() {
    find . -maxdepth 1 -name '*.yaml'
    find server client tests docs .ci -name data -prune -o \( -name '*.yaml' -o -name '*.yml' \) -print 2>/dev/null
}

# shellcheck disable=SC2046  # no spaces in our own file names
step 'ruff check' ruff check --quiet --config client/pyproject.toml client tests $(server_python)
# shellcheck disable=SC2046
step 'ruff format' ruff format --quiet --check --config client/pyproject.toml client tests $(server_python)
step 'mypy client' mypy --no-error-summary --config-file client/pyproject.toml client/src/clr_client
step 'mypy tests/support, tests/bench' env MYPYPATH=tests mypy --no-error-summary --config-file client/pyproject.toml -p support -p bench
for file in $(server_python); do
    step "mypy $file" env MYPYPATH=server mypy --no-error-summary --config-file client/pyproject.toml "$file"
done
# shellcheck disable=SC2046
step 'shellcheck' shellcheck $(shell_files)
# shellcheck disable=SC2046
step 'yamllint' yamllint --strict --config-file tests/yamllint.yaml $(yaml_files)

if has hadolint; then
    step 'hadolint' hadolint server/Dockerfile client/Dockerfile
else
    skip 'hadolint (PyPI has it for x86-64 only)'
fi

if docker compose version >/dev/null 2>&1; then
    compose='docker compose'
elif has docker-compose; then
    compose=docker-compose
else
    compose=
fi
if [ -n "$compose" ]; then
    for file in docker-compose.*.yaml; do
        # shellcheck disable=SC2086  # two words
        step "$compose config $file" $compose -f "$file" config --quiet
    done
else
    skip 'compose config (Docker Compose is not installed)'
fi
