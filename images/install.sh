#!/bin/sh
# install.sh TARGET EXTRA...: Lathe with these extras, as locked, into the environment TARGET; what no container needs is left out.
set -eu
target=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
extras=
for extra; do extras="$extras --extra $extra"; done
# shellcheck disable=SC2086 (one word for each option)
UV_PROJECT_ENVIRONMENT=$target UV_LINK_MODE=copy "$root/hack/uv" sync --quiet --project "$root" --frozen --no-dev --no-editable $extras
find "$target" -depth \( -name __pycache__ -o -path '*/site-packages/*/tests' -o -path '*/site-packages/*/test' \) -type d -exec rm -rf {} +
# The CPU build of torch is a third of the size; it comes from an index of its own, which the builder names.
if [ -n "${TORCH_INDEX:-}" ]; then
  version=$("$target/bin/python" -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])')
  "$root/hack/uv" pip install --quiet --python "$target/bin/python" --reinstall-package torch --index "$TORCH_INDEX" "torch==$version"
  packages=$("$root/hack/uv" pip freeze --python "$target/bin/python")
  printf '%s\n' "$packages" | sed -n 's/^\(nvidia-[^=]*\|cuda-[^=]*\|triton\)==.*/\1/p' |
    xargs -r "$root/hack/uv" pip uninstall --quiet --python "$target/bin/python"
fi
