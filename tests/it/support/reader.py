"""Looks at a mount at random, compares everything with what is known, and says what it has seen.

    reader.py SEED PLAN.json

It writes the file `begun.SEED` beside the plan when it has read something.

In the plan: `files`, pairs of a path and a file with the right content; `moving`, a path and several files, each
of which may be its content; `stop`, a file that ends it when it appears; `rounds`, after which it ends too (0:
never); `tolerate`, errors after which it tries something else; `wander`, directories to be listed, whose entries
are looked at.
"""
import errno, json, mmap, os, random, sys, time

choose = random.Random(int(sys.argv[1]))
plan = json.load(open(sys.argv[2]))
seen = {"reads": 0, "bytes": 0, "listings": 0, "moving": 0, "errors": {}}
rights = {}
opened = []


def right_of(path):
    if path not in rights:
        with open(path, "rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            rights[path] = b"" if empty else mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return rights[path]


def wrong(text):
    sys.exit("wrong: " + text)


def check(fd, path, right, at, length):
    """Reads one piece; an answer may be short, but never wrong and never empty before the end."""
    end = min(at + length, len(right))
    while at < end:
        got = os.pread(fd, end - at, at)
        if not got:
            wrong("%s ends at %d of %d" % (path, at, len(right)))
        if got != right[at:at + len(got)]:
            wrong("%d bytes at %d of %s" % (len(got), at, path))
        at += len(got)
        seen["reads"] += 1
        seen["bytes"] += len(got)


def a_file():
    """An open file: a new one, or one that has been open for a while."""
    if opened and (len(opened) >= 6 or choose.random() < 0.5):
        return opened[choose.randrange(len(opened))]
    path, right = choose.choice(plan["files"])
    fd = os.open(path, os.O_RDONLY)
    opened.append((fd, path, right_of(right)))
    return opened[-1]


def close_one(at):
    fd, path, right = opened.pop(at)
    os.close(fd)


def read():
    fd, path, right = a_file()
    size = os.fstat(fd).st_size
    if size != len(right):
        wrong("%s has %d bytes, not %d" % (path, size, len(right)))
    if not right:
        return
    if choose.random() < 0.2:
        # What the kernel has of it is to be asked for again.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    kind = choose.random()
    at = choose.choice([0, choose.randrange(len(right)), max(0, len(right) - choose.randrange(1, 5000))])
    if kind < 0.7:
        check(fd, path, right, at, choose.choice([1, 511, 4096, 4097, 100_000, 1_000_000]))
    elif kind < 0.95:
        for _ in range(choose.randrange(1, 12)):
            check(fd, path, right, at, 65_536)
            at += 65_536
    else:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            # An error in here would be a signal; so this is done only where there are none.
            if not plan["tolerate"]:
                length = choose.randrange(1, 300_000)
                if mapped[at:at + length] != right[at:at + length]:
                    wrong("mapped, %d bytes at %d of %s" % (length, at, path))


def wander():
    directory = choose.choice(plan["wander"])
    names = os.listdir(directory)
    if len(names) != len(set(names)):
        wrong("%s lists a name twice" % directory)
    for name in choose.sample(names, min(5, len(names))):
        path = os.path.join(directory, name)
        meta = os.stat(path)
        for known, right in plan["files"]:
            if known == path and meta.st_size != len(right_of(right)):
                wrong("%s has %d bytes" % (path, meta.st_size))
    seen["listings"] += 1


def read_moving():
    path, rights = choose.choice(plan["moving"])
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if choose.random() < 0.3:
            # Whoever has it open stays with what he opened.
            time.sleep(choose.random() / 20)
        got = b""
        while piece := file.read(1000):
            got += piece
    if size != len(got) or not any(got == right_of(right)[:] for right in rights):
        wrong("%s is none of what it may be: %d, %d bytes: %r" % (path, size, len(got), got))
    seen["moving"] += 1


done = 0
begun = False
while not os.path.exists(plan["stop"]) and (done < plan["rounds"] or not plan["rounds"]):
    try:
        if plan["wander"] and choose.random() < 0.1:
            wander()
        elif plan["moving"] and choose.random() < 0.2:
            read_moving()
        else:
            read()
        if opened and choose.random() < 0.3:
            close_one(choose.randrange(len(opened)))
        done += 1
        if seen["reads"] and not begun:
            begun = True
            open("%s.%s" % (plan["begun"], sys.argv[1]), "w").close()
    except OSError as error:
        name = errno.errorcode.get(error.errno, str(error.errno))
        if name not in plan["tolerate"]:
            raise
        seen["errors"][name] = seen["errors"].get(name, 0) + 1
        while opened:
            try:
                close_one(0)
            except OSError:
                pass
        time.sleep(0.01)
print(json.dumps(seen))
