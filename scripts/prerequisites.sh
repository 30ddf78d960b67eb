# Sourced by ./demo and ./test: finds a C compiler, make, git, curl and a Rust that is new enough, installs what is missing, and says so.
need_packages=()
command -v cc >/dev/null 2>&1 || need_packages+=(gcc libc6-dev)
# For the allocator.
command -v make >/dev/null 2>&1 || need_packages+=(make)
command -v git >/dev/null 2>&1 || need_packages+=(git)
command -v curl >/dev/null 2>&1 || need_packages+=(curl)
# Without them curl and cargo believe no server. Only Debian and its like have them there.
if command -v apt-get >/dev/null 2>&1 && [ ! -e "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" ]; then
    need_packages+=(ca-certificates)
fi
if [ ${#need_packages[@]} -gt 0 ]; then
    echo "missing: ${need_packages[*]}"
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "error: this is no Debian or Ubuntu machine: install a C compiler, make, git and curl, then run this again" >&2
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
# Both rustup and cargo look for it.
if [ -z "${HOME:-}" ]; then
    # Bash asks the system for it only if there is no variable.
    unset HOME
    HOME=~
    export HOME
fi
cargo_home=${CARGO_HOME:-$HOME/.cargo}
# Before a cargo of the distribution, which does not follow rust-toolchain.toml.
[ -x "$cargo_home/bin/cargo" ] && PATH="$cargo_home/bin:$PATH"
rust_needed=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
# Whether there is a cargo, and a compiler that is new enough. Sets rust_found.
rust_serves() {
    rust_found=$(command -v cargo >/dev/null 2>&1 && rustc --version | cut -d' ' -f2) || return 1
    [ "$(printf '%s\n' "$rust_needed" "$rust_found" | sort -V | head -n 1)" = "$rust_needed" ]
}
if ! rust_serves; then
    echo "missing: Rust $rust_needed${rust_found:+ (there is $rust_found)}; installing it with rustup"
    if command -v rustup >/dev/null 2>&1; then
        rustup toolchain install "$rust_needed" --profile minimal --component rustfmt,clippy
    else
        # Without a toolchain: what rust-toolchain.toml pins comes by itself.
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
        PATH="$cargo_home/bin:$PATH"
    fi
    rust_serves || {
        echo "error: rustc is ${rust_found:-still missing}, $rust_needed is needed: is RUSTUP_TOOLCHAIN set, or another cargo before" \
            "$cargo_home/bin in PATH?" >&2
        exit 69
    }
fi
