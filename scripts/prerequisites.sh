# Sourced by ./demo and ./test: finds a C compiler, git and cargo, installs what is missing, and says so.
need_packages=()
command -v cc >/dev/null 2>&1 || need_packages+=(gcc libc6-dev)
# For the allocator.
command -v make >/dev/null 2>&1 || need_packages+=(make)
command -v git >/dev/null 2>&1 || need_packages+=(git)
command -v curl >/dev/null 2>&1 || need_packages+=(curl ca-certificates)
if [ ${#need_packages[@]} -gt 0 ]; then
    echo "missing: ${need_packages[*]}"
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "error: this is no Debian or Ubuntu machine: install a C compiler, git and curl, then run this again" >&2
        exit 69
    fi
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            echo "error: neither root nor sudo: run 'apt-get install ${need_packages[*]}' as root, then run this again" >&2
            exit 77
        }
        as_root=sudo
    fi
    echo "installing: ${need_packages[*]}"
    $as_root apt-get update -q
    $as_root apt-get install -q -y --no-install-recommends "${need_packages[@]}"
fi
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
if ! command -v cargo >/dev/null 2>&1; then
    echo "missing: cargo; installing rustup (the toolchain is pinned by rust-toolchain.toml)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
    . "$HOME/.cargo/env"
fi
