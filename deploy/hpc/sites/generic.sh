# shellcheck shell=bash
# A site of which nothing is known: the settings say all. Copy it for yours, and name the copy in GRIDRAD_SITE.

site_modules() {
  local name
  if ((${#GRIDRAD_MODULES[@]})); then find_module; fi
  for name in "${GRIDRAD_MODULES[@]}"; do module load "$name"; done
}

site_network() { :; }
