#!/usr/bin/env bash
# setup.sh DIR: an arm64 Python with onnxruntime in DIR, and the emulator that runs it. Needs Debian's apt and pip, no root.
# It changes nothing outside of DIR: packages are downloaded and unpacked, not installed.
set -eu
mkdir -p "$1"/{apt/lists/partial,apt/cache,debs,root,wheels}
dir=$(cd "$1" && pwd)
key=/usr/share/keyrings/debian-archive-keyring.gpg
cat > "$dir/apt/sources.list" <<END
deb [arch=arm64 signed-by=$key] http://deb.debian.org/debian bookworm main
deb [arch=amd64 signed-by=$key] http://deb.debian.org/debian bookworm-backports main
END
apt() {
  apt-get -q -o Dir::Etc::sourcelist="$dir/apt/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$dir/apt/lists" -o Dir::Cache="$dir/apt/cache" \
    -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= "$@"
}
apt update
cd "$dir/debs"
# qemu 7.2 of Debian 12 crashes when onnxruntime is imported; 10.0 of its backports does not.
apt download qemu-user:amd64
apt download libc6:arm64 libgcc-s1:arm64 libstdc++6:arm64 zlib1g:arm64 libexpat1:arm64 libssl3:arm64 libffi8:arm64 \
  libbz2-1.0:arm64 liblzma5:arm64 libuuid1:arm64 libcrypt1:arm64 libsqlite3-0:arm64 \
  python3.11-minimal:arm64 libpython3.11-minimal:arm64 libpython3.11-stdlib:arm64
for deb in *.deb; do dpkg-deb -x "$deb" "$dir/root"; done
find "$dir/root/usr/bin" -name "qemu-*" ! -name qemu-aarch64 -delete  # it comes for two dozen kinds of CPU
python=${PYTHON:-python3}
"$python" -m pip download -q -d "$dir/wheels" --only-binary=:all: --no-deps --python-version 3.11 --implementation cp \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux2014_aarch64 onnxruntime numpy pillow
for wheel in "$dir"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$dir/root/site"; done
cat > "$dir/python" <<END
#!/bin/sh
exec env PYTHONPATH="$dir/root/site" OMP_NUM_THREADS=1 "$dir/root/usr/bin/qemu-aarch64" -cpu max -L "$dir/root" "$dir/root/usr/bin/python3.11" "\$@"
END
chmod +x "$dir/python"
"$dir/python" -c "import platform, numpy, onnxruntime; print(platform.machine(), numpy.__version__, onnxruntime.__version__)"
rm -r "$dir/apt" "$dir/debs" "$dir/wheels"
