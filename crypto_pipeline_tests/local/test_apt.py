"""The mirror and its keyring are read from the machine's configuration, in both its notations."""

from __future__ import annotations

from crypto_pipeline.local.apt import (
    Source,
    machine_sources,
    parse_deb822,
    parse_one_line,
    release_sources,
)

MIRROR = "http://mirror.example/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_deb822_stanzas():
    """Debian's own notation since 12, with comments, several suites and an embedded key."""
    text = f"""\
# a comment
Types: deb deb-src
# another, inside
URIs: {MIRROR}
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {KEYRING}

Types: deb
Enabled: no
URIs: http://disabled.example
Suites: bookworm
Components: main

Types: deb-src
URIs: http://only-sources.example
Suites: bookworm
Components: main

Types: deb
URIs: http://embedded.example
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""
    first, second, embedded = parse_deb822(text)
    assert first == Source(MIRROR, "bookworm", ("main", "contrib"), KEYRING)
    assert second.suite == "bookworm-updates"
    assert embedded.signed_by.startswith("-----BEGIN")
    assert list(parse_deb822(embedded.deb822())) == [embedded]


def test_one_line_sources():
    """The older notation, which many machines keep through upgrades."""
    text = f"""\
# deb http://commented.example bookworm main
deb [arch=amd64 signed-by={KEYRING}] {MIRROR} bookworm main contrib # why
deb-src {MIRROR} bookworm main
deb {MIRROR} bookworm-updates main
"""
    assert list(parse_one_line(text)) == [
        Source(MIRROR, "bookworm", ("main", "contrib"), KEYRING),
        Source(MIRROR, "bookworm-updates", ("main",)),
    ]


def test_a_switched_off_check_is_not_taken_over():
    """`trusted=yes` for a repository of one's own must not make us take unsigned packages."""
    (source,) = parse_one_line(f"deb [trusted=yes] {MIRROR} bookworm main")
    assert "rusted" not in source.deb822()


def test_files_apt_ignores_are_ignored(tmp_path):
    """Disabled sources stay disabled: apt reads .list and .sources alone."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    line = "deb {} bookworm main\n"
    (tmp_path / "sources.list").write_text(line.format("http://a.example"))
    (parts / "b.list").write_text(line.format("http://b.example"))
    (parts / "c.list.disabled").write_text(line.format("http://c.example"))
    (parts / "d.sources").write_text(Source("http://d.example", "bookworm", ("main",)).deb822())
    uris = [source.uri for source in machine_sources(tmp_path)]
    assert uris == ["http://a.example", "http://b.example", "http://d.example"]


def test_only_mirrors_of_the_release_are_asked():
    """Third parties and the security archive have no such suite: asking them wastes the start."""
    sources = [
        Source("http://third.example", "cloud-sdk-bookworm", ("main",)),
        Source("http://docker.example", "bookworm", ("stable",)),
        Source(MIRROR, "bookworm", ("main", "contrib"), KEYRING),
        Source(MIRROR, "bookworm-updates", ("main",), KEYRING),
        Source("http://security.example", "bookworm-security", ("main",), KEYRING),
    ]
    assert release_sources(sources, "bookworm") == [Source(MIRROR, "bookworm", ("main",), KEYRING)]
