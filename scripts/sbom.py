#!/usr/bin/env python3
"""Prints the crates that the program is built from as a CycloneDX document, without serial number and time, so that it is
the same for each build of a commit. It reads Cargo.lock and what cargo says of the features that packages have."""

import json
import os
import subprocess
import sys

TARGET = os.environ.get("CHAINWRITER_TARGET", "x86_64-unknown-linux-gnu")


def metadata():
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--features=otlp", f"--filter-platform={TARGET}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def checksums():
    """Returns the checksum of each crate by name and version."""
    found, name, version = {}, None, None
    with open("Cargo.lock", encoding="utf-8") as lock:
        for line in lock:
            key, _, value = line.strip().partition(" = ")
            value = value.strip('"')
            if key == "name":
                name = value
            elif key == "version":
                version = value
            elif key == "checksum":
                found[name, version] = value
    return found


def reachable(root, nodes):
    """Returns the crates in the program, each with whether it only runs while that is built."""
    only_builds, pending = {root: False}, [root]
    while pending:
        package = pending.pop()
        for dependency in nodes[package]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            if kinds == {"dev"}:
                continue
            builds = only_builds[package] or None not in kinds
            other = dependency["pkg"]
            if other not in only_builds or (only_builds[other] and not builds):
                only_builds[other] = builds
                pending.append(other)
    return only_builds


def main():
    data, sums = metadata(), checksums()
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    root = next(package["id"] for package in data["packages"] if package["name"] == "chainwriter")
    used = reachable(root, nodes)

    def reference(package):
        return f"pkg:cargo/{packages[package]['name']}@{packages[package]['version']}"

    def component(package):
        of = packages[package]
        entry = {"type": "library", "bom-ref": reference(package), "name": of["name"], "version": of["version"],
                 "purl": reference(package), "scope": "excluded" if used[package] else "required"}
        if (of["name"], of["version"]) in sums:
            entry["hashes"] = [{"alg": "SHA-256", "content": sums[of["name"], of["version"]]}]
        if of["license"]:
            entry["licenses"] = [{"expression": of["license"].replace("/", " OR ")}]
        return entry

    def is_in_program(dependency):
        return dependency["pkg"] in used and any(kind["kind"] != "dev" for kind in dependency["dep_kinds"])

    libraries = sorted((package for package in used if package != root), key=reference)
    program = {"type": "application", "bom-ref": reference(root), "name": "chainwriter",
               "version": packages[root]["version"], "purl": reference(root),
               "licenses": [{"expression": packages[root]["license"]}],
               "properties": [{"name": "commit", "value": os.environ.get("CHAINWRITER_COMMIT", "unknown")}]}
    edges = [{"ref": reference(package),
              "dependsOn": sorted({reference(other["pkg"]) for other in nodes[package]["deps"] if is_in_program(other)})}
             for package in sorted(used, key=reference)]
    document = {"$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json", "bomFormat": "CycloneDX",
                "specVersion": "1.5", "version": 1, "metadata": {"component": program},
                "components": [component(package) for package in libraries], "dependencies": edges}
    json.dump(document, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()
