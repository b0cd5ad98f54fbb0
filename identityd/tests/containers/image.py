"""Makes images by hand, as one archive each that ctr, docker and podman read alike.

usage: image.py DIR NAME...      prints, for each NAME: its config's digest, its manifest's digest

Each image has busybox, and a label `image` with its own name; so that all share their one layer and none its config.
"""

import hashlib
import io
import json
import sys
import tarfile

MEDIA = "application/vnd.oci.image."


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def add(tar, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.mode, info.size = mode, len(data)
    tar.addfile(info, io.BytesIO(data))


def layer():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        with open("/bin/busybox", "rb") as busybox:
            add(tar, "bin/busybox", busybox.read(), 0o755)
        for name in ["sh", "sleep"]:
            link = tarfile.TarInfo("bin/" + name)
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return out.getvalue()


def encoded(value):
    return json.dumps(value).encode()


def described(kind, data):
    return {"mediaType": MEDIA + kind, "digest": digest(data), "size": len(data)}


def blob(data):
    return "blobs/sha256/" + digest(data).removeprefix("sha256:")


def image(path, name, files):
    run = {"Cmd": ["/bin/sleep", "1000"], "Env": ["PATH=/bin"], "Labels": {"image": name}}
    rootfs = {"type": "layers", "diff_ids": [digest(files)]}
    config = encoded({"architecture": "amd64", "os": "linux", "config": run, "rootfs": rootfs})
    parts = {"config": described("config.v1+json", config), "layers": [described("layer.v1.tar", files)]}
    manifest = encoded({"schemaVersion": 2, "mediaType": MEDIA + "manifest.v1+json", **parts})
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    entry = {**described("manifest.v1+json", manifest), "annotations": names}
    with tarfile.open(path, "w") as tar:
        add(tar, "oci-layout", encoded({"imageLayoutVersion": "1.0.0"}))
        add(tar, "index.json", encoded({"schemaVersion": 2, "manifests": [entry]}))
        add(tar, "manifest.json", encoded([{"Config": blob(config), "RepoTags": [name], "Layers": [blob(files)]}]))
        for data in [files, config, manifest]:
            add(tar, blob(data), data)
    print(digest(config), digest(manifest))


def main(directory, names):
    files = layer()
    for name in names:
        image(f"{directory}/{name.replace('/', '-').replace(':', '-')}.tar", name, files)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
