# Sourced by ./demo and ./check: `need PACKAGE…` installs the Debian packages that are not there yet, with
# NEED_OPTIONS for apt-get.

need() {
    local package missing=()
    for package in "$@"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    local sudo=()
    if ((EUID != 0)); then
        sudo=(sudo)
        if ! command -v sudo >/dev/null; then
            echo "error: these packages are missing and there is no sudo to install them with: ${missing[*]}" >&2
            echo "help: as root: apt-get install ${missing[*]}" >&2
            return 1
        fi
    fi
    echo "== installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ${NEED_OPTIONS:-} "${missing[@]}" >/dev/null
}

# The toolchain that rust-toolchain.toml names, and a linker.
need_rust() {
    if ! command -v cargo >/dev/null; then
        echo "error: there is no Rust toolchain here" >&2
        echo "help: https://rustup.rs installs one" >&2
        return 1
    fi
    command -v cc >/dev/null || need gcc libc6-dev
}
