"""Random operations by seed on a mount and on a local directory side by side: each result, and what can be seen afterwards, must be
the same. Usage: oracle.py MOUNT LOCAL SEED OPERATIONS. Needs root: some operations are made as other users. What is known to differ, and is not
compared, is in docs/posix.md; whatever else differs is a fault."""

import ctypes, errno, fcntl, mmap, os, random, stat, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
KEEP, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
USERS = [(0, 0, []), (1000, 1000, []), (1001, 1000, [1002]), (1002, 1003, [1000])]
LENGTH = 1_500_000
NAMES = [b"a", b"b", b"c", b"dd", b"\xff\xfe odd \n", b"n" * 255, b"."*3]
FOLDERS = [b"", b"d", b"e", b"d/f"]


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def rename2(root, old, new, flags):
    if libc.renameat2(root, old, root, new, flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def acl(entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


# Times before this one were set; the clocks say more.
LONG_AGO = 1_300_000_000 * 10**9


class Mode:
    """A file's mode. A write by somebody who is not of the file's group takes its set-group-id bit on a local disk, also where the group may
    not execute it; the kernel does not tell a file system in user space who is of which group (docs/posix.md). Of an inode that such a
    write has been tried on (`blurred`) the bit says nothing, until it is set anew; of all others it must be the same."""

    def __init__(self, bits, blurred):
        self.bits, self.blurred = bits, blurred

    def __eq__(self, other):
        differs = self.bits ^ other.bits
        return differs == 0 or (differs == stat.S_ISGID and (self.blurred or other.blurred))

    def __repr__(self):
        return oct(self.bits) + "?" * self.blurred


class Read:
    """A time of reading. One that was set is the same on both sides as long as neither has seen a read, which the mount does not see where
    the kernel reads from its own cache (docs/posix.md)."""

    def __init__(self, nanos):
        self.nanos = nanos

    def __eq__(self, other):
        return self.nanos == other.nanos or max(self.nanos, other.nanos) >= LONG_AGO

    def __repr__(self):
        return f"read at {self.nanos}"


class Side:
    """One of the two: its directory, and what is open there."""

    def __init__(self, path):
        self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.chmod(path, 0o777)
        # Not so when it is tried out on two local directories.
        self.is_mount = any(line.split()[1:3] == [os.path.realpath(path), "fuse.holdfast"] for line in open("/proc/mounts"))
        self.open = {}
        # Inodes whose set-group-id bit a write may have taken or not; and the last time of change that was seen of each.
        self.blurred, self.changed = set(), {}

    def path(self, name):
        return f"/proc/self/fd/{self.root}/".encode() + name


class Oracle:
    def __init__(self, mount, local, seed):
        self.sides = [Side(mount), Side(local)]
        self.random = random.Random(seed)
        self.seed, self.slots, self.counts, self.refused = seed, range(6), {}, 0

    # ---- what is drawn ----

    def name(self):
        folder = self.random.choice(FOLDERS)
        name = self.random.choice(NAMES) if self.random.random() < 0.995 else b"n" * 256
        return folder + b"/" + name if folder else name

    def folder(self):
        return self.random.choice(FOLDERS) or b"."

    def any(self):
        return self.folder() if self.random.random() < 0.2 else self.name()

    def range(self):
        # Ends and beginnings of blocks are where mistakes live.
        r = self.random
        edge = r.choice([1, 512, 4096, 65536, 1 << 20])
        start = max(0, r.randrange(LENGTH) // edge * edge + r.choice([-1, 0, 0, 1]))
        return start, r.choice([1, 511, 4096, r.randrange(1, 100_000)])

    def bytes(self, count):
        return bytes([self.random.randrange(1, 256)]) * count

    def slot(self):
        used = [slot for slot in self.slots if slot in self.sides[0].open]
        return self.random.choice(used) if used else None

    def writes(self, side, target):
        """What is to be said before a file, open or by its name, is written to."""
        uid, gid, groups = self.user
        try:
            seen = os.fstat(target) if isinstance(target, int) else os.stat(target, dir_fd=side.root)
        except OSError:
            return
        if uid != 0 and seen.st_mode & stat.S_ISGID and not seen.st_mode & stat.S_IXGRP and seen.st_gid not in [gid, *groups]:
            side.blurred.add(seen.st_ino)

    # ---- operations: each returns what is done on a side, or None if it does not apply now ----

    def op_open(self):
        slot, name = self.random.choice(self.slots), self.name()
        flags = self.random.choice([os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
        for flag in (os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DSYNC, os.O_NOFOLLOW):
            flags |= flag if self.random.random() < 0.3 else 0
        mode = self.random.choice([0o644, 0o600, 0o777, 0o6755])
        def do(side):
            if slot in side.open:
                os.close(side.open.pop(slot))
            if flags & os.O_TRUNC:
                self.writes(side, name)
            side.open[slot] = os.open(name, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=side.root)
        return do

    def op_tmpfile(self):
        slot, folder, mode = self.random.choice(self.slots), self.folder(), self.random.choice([0o644, 0o2770])
        def do(side):
            if slot in side.open:
                os.close(side.open.pop(slot))
            side.open[slot] = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=side.root)
        return do

    def op_close(self):
        slot = self.slot()
        return slot is not None and (lambda side: os.close(side.open.pop(slot)))

    def with_open(self, action, writes=False):
        slot = self.slot()
        def do(side):
            if writes:
                self.writes(side, side.open[slot])
            return action(side.open[slot])
        return slot is not None and do

    def op_write(self):
        (start, length), long = self.range(), self.random.random() < 0.05
        data = self.bytes(length * (10 if long else 1))
        return self.with_open(lambda fd: os.pwrite(fd, data, start), writes=True)

    def op_append(self):
        data = self.bytes(self.random.randrange(1, 5000))
        return self.with_open(lambda fd: os.write(fd, data) and os.lseek(fd, 0, os.SEEK_CUR), writes=True)

    def op_read(self):
        start, length = self.range()
        return self.with_open(lambda fd: os.pread(fd, length, start))

    def op_direct(self):
        start, length = self.range()
        start, length = start // 4096 * 4096, length // 4096 * 4096 + 4096
        data, write, name = self.bytes(length), self.random.random() < 0.5, self.name()
        def do(side):
            fd = os.open(name, (os.O_RDWR if write else os.O_RDONLY) | os.O_DIRECT | os.O_NONBLOCK, dir_fd=side.root)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return "no file"
                buffer = mmap.mmap(-1, length)
                if write:
                    buffer.write(data)
                    self.writes(side, fd)
                    return os.pwritev(fd, [buffer], start)
                count = os.preadv(fd, [buffer], start)
                return buffer[:count]
            finally:
                os.close(fd)
        return do

    def op_mapped(self):
        start, length = self.range()
        data, write, private = self.bytes(length), self.random.random() < 0.6, self.random.random() < 0.2
        def do(fd):
            size = os.fstat(fd).st_size
            if size == 0 or start >= size:
                return "nothing to map"
            kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
            with mmap.mmap(fd, size, kind, mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)) as mapped:
                end = min(size, start + length)
                if write:
                    mapped[start:end] = data[: end - start]
                return mapped[max(0, start - 10) : end + 10]
        return self.with_open(do)

    def op_truncate(self):
        size = self.random.choice([0, self.range()[0], self.random.randrange(LENGTH)])
        if self.random.random() < 0.5:
            return self.with_open(lambda fd: os.ftruncate(fd, size), writes=True)
        name = self.name()
        def do(side):
            self.writes(side, name)
            os.truncate(side.path(name), size)
        return do

    def op_fallocate(self):
        start, length = self.range()
        mode = self.random.choice([0, KEEP, PUNCH | KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP, PUNCH, ZERO | PUNCH | KEEP])
        length = 0 if self.random.random() < 0.02 else length * self.random.choice([1, 1, 10])
        return self.with_open(lambda fd: fallocate(fd, mode, start, length), writes=True)

    def op_collapse(self):
        mode, slot = self.random.choice([COLLAPSE, INSERT]), self.slot()
        def do(side):
            # Local file systems may offer it, this one does not, and changes nothing.
            if side.is_mount and stat.S_ISREG(os.fstat(side.open[slot]).st_mode):
                try:
                    fallocate(side.open[slot], mode, 4096, 4096)
                except OSError as error:
                    assert error.errno in (errno.EOPNOTSUPP, errno.EBADF), error
                else:
                    raise AssertionError("collapsed")
        return slot is not None and do

    def op_copy(self):
        source, target = self.slot(), self.slot()
        (start, length), (to, _) = self.range(), self.range()
        length *= self.random.choice([1, 20])
        def do(side):
            done = 0
            self.writes(side, side.open[target])
            while done < length:
                count = os.copy_file_range(side.open[source], side.open[target], length - done, start + done, to + done)
                if count == 0:
                    break
                done += count
            return done
        return source is not None and do

    def op_seek(self):
        start, _ = self.range()
        def do(fd):
            # How finely holes are told is a file system's own affair; that no data is passed over is not.
            size = os.fstat(fd).st_size
            at = os.lseek(fd, start, os.SEEK_DATA)
            assert at >= start and not any(os.pread(fd, at - start, start)), "data was passed over"
            hole = os.lseek(fd, start, os.SEEK_HOLE)
            assert start <= hole <= size, "a hole where none can be"
            assert not any(os.pread(fd, 4096 - hole % 4096, hole)), "a hole that has bytes"
        slot = self.slot()
        def guarded(side):
            fd = side.open[slot]
            if stat.S_ISREG(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
                position = os.lseek(fd, 0, os.SEEK_CUR)
                try:
                    do(fd)
                except OSError as error:
                    # Nothing but holes until the end: whoever does not tell holes apart says that there is data.
                    assert error.errno == errno.ENXIO, error
                    assert not any(os.pread(fd, LENGTH * 3, start)), "data was denied"
                finally:
                    os.lseek(fd, position, os.SEEK_SET)
        return slot is not None and guarded

    def op_sync(self):
        data = self.random.random() < 0.5
        return self.with_open(os.fdatasync if data else os.fsync)

    def op_mkdir(self):
        folder, mode = self.folder(), self.random.choice([0o755, 0o1777, 0o2775, 0o700])
        return lambda side: os.mkdir(folder, mode, dir_fd=side.root)

    def op_rmdir(self):
        folder = self.any() if self.random.random() < 0.8 else self.folder() + b"/.."
        return (self.random.random() < 0.3) and (lambda side: os.rmdir(folder, dir_fd=side.root))

    def op_unlink(self):
        name = self.any()
        return lambda side: os.unlink(name, dir_fd=side.root)

    def op_rename(self):
        old, new, flags = self.any(), self.any(), self.random.choice([0, 0, 0, 1, 2, 2, 3])
        return lambda side: rename2(side.root, old, new, flags)

    def op_link(self):
        old, new = self.any(), self.name()
        return lambda side: os.link(old, new, src_dir_fd=side.root, dst_dir_fd=side.root, follow_symlinks=False)

    def op_link_open(self):
        slot, new = self.slot(), self.name()
        def do(side):
            os.link(f"/proc/self/fd/{side.open[slot]}", new, dst_dir_fd=side.root, follow_symlinks=True)
        return slot is not None and do

    def op_symlink(self):
        target, name = self.random.choice([self.name(), b"nowhere", b"x" * 4095]), self.name()
        return lambda side: os.symlink(target, name, dir_fd=side.root)

    def op_node(self):
        # No devices: mounts do not open them (nodev).
        name, kind = self.name(), self.random.choice([stat.S_IFIFO, stat.S_IFSOCK])
        return lambda side: os.mknod(name, kind | 0o640, 0, dir_fd=side.root)

    def op_chmod(self):
        name, mode = self.any(), self.random.choice([0o644, 0o4755, 0o2750, 0o2666, 0o1777, 0o070, 0o007, 0o751])
        def do(side):
            os.chmod(name, mode, dir_fd=side.root)
            side.blurred.discard(os.stat(name, dir_fd=side.root).st_ino)
        return do

    def op_chown(self):
        name, ids = self.any(), [-1, 0, 1000, 1001, 1002, 1003]
        owner, group = self.random.choice(ids), self.random.choice(ids)
        # To nobody else, and not by the owner, differs where set-id bits are: docs/posix.md.
        return (self.user[0] == 0 or owner != group or owner != -1) and (lambda side: os.chown(name, owner, group, dir_fd=side.root, follow_symlinks=False))

    def op_times(self):
        seconds = [-2_000_000_000, -1, 0, 1, 1_234_567_890]
        times = tuple(self.random.choice(seconds) * 10**9 + self.random.choice([0, 1, 500_000_000, 999_999_999]) for _ in range(2))
        def shown(seen):
            return seen.st_atime_ns, seen.st_mtime_ns
        if self.random.random() < 0.3:
            return self.with_open(lambda fd: os.utime(fd, ns=times) or shown(os.fstat(fd)))
        name = self.any()
        def do(side):
            os.utime(name, ns=times, dir_fd=side.root, follow_symlinks=False)
            return shown(os.stat(name, dir_fd=side.root, follow_symlinks=False))
        return do

    def op_xattr(self):
        name, key = self.any(), self.random.choice(["user.a", "user.b", "trusted.c"])
        value, flags = self.bytes(self.random.choice([0, 1, 100])), self.random.choice([0, 0, 1, 2])
        def do(side):
            os.setxattr(side.path(name), key, value, flags, follow_symlinks=False)
        def remove(side):
            os.removexattr(side.path(name), key, follow_symlinks=False)
        return do if self.random.random() < 0.7 else remove

    def op_acl(self):
        name, kind = self.any(), self.random.choice(["access", "default"])
        r, entries = self.random, [(1, self.random.randrange(8), 0xFFFFFFFF)]
        users = sorted(r.sample([1000, 1001, 1002], r.randrange(3)))
        groups = sorted(r.sample([1000, 1002, 1003], r.randrange(3)))
        entries += [(2, r.randrange(8), user) for user in users] + [(4, r.randrange(8), 0xFFFFFFFF)]
        entries += [(8, r.randrange(8), group) for group in groups]
        if users or groups or r.random() < 0.2:
            entries.append((16, r.randrange(8), 0xFFFFFFFF))
        value = acl(entries + [(32, r.randrange(8), 0xFFFFFFFF)])
        key = f"system.posix_acl_{kind}"
        if r.random() < 0.2:
            return lambda side: os.removexattr(side.path(name), key)
        return lambda side: os.setxattr(side.path(name), key, value)

    def op_ofd_lock(self):
        start, length = self.random.randrange(50), self.random.randrange(30)
        kind = self.random.choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
        ask = struct.pack("hhqqi4x", kind, 0, start, length, 0)
        if self.random.random() < 0.3 and kind != fcntl.F_UNLCK:
            # Which of several is shown may differ, whether there is one not.
            return self.with_open(lambda fd: struct.unpack("hhqqi4x", fcntl.fcntl(fd, 36, ask))[0] != fcntl.F_UNLCK)
        return self.with_open(lambda fd: fcntl.fcntl(fd, 37, ask) and None)

    def op_flock(self):
        how = self.random.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN])
        # Directories' locks are the kernel's own.
        return self.with_open(lambda fd: fcntl.flock(fd, how | fcntl.LOCK_NB))

    def op_access(self):
        name, flags = self.any(), self.random.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
        data, write = self.bytes(10), self.random.random() < 0.5
        def do(side):
            fd = os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=side.root)
            try:
                regular = stat.S_ISREG(os.fstat(fd).st_mode)
                self.writes(side, fd)
                return os.write(fd, data) if write and regular and flags != os.O_RDONLY else None
            finally:
                os.close(fd)
        return do

    def op_list(self):
        folder = self.folder()
        def do(side):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=side.root)
            try:
                return sorted(os.listdir(fd))
            finally:
                os.close(fd)
        return do

    # ---- running and comparing ----

    WEIGHTS = dict(open=14, tmpfile=1, close=3, write=14, append=3, read=8, direct=6, mapped=8, truncate=4, fallocate=8,
                   collapse=1, copy=5, seek=3, sync=2, mkdir=3, rmdir=2, unlink=4, rename=6, link=3, link_open=1, symlink=1,
                   node=1, chmod=4, chown=3, times=2, xattr=4, acl=6, ofd_lock=6, flock=4, access=6, list=1)

    def as_user(self, user, umask, action):
        uid, gid, groups = user
        os.umask(umask)
        if uid == 0:
            return action()
        os.setgroups(groups); os.setegid(gid); os.seteuid(uid)
        try:
            return action()
        finally:
            os.seteuid(0); os.setegid(0); os.setgroups([])

    def run_on(self, side, user, umask, action):
        try:
            return self.as_user(user, umask, lambda: action(side))
        except OSError as error:
            return errno.errorcode[error.errno]

    def mode(self, side, seen):
        return Mode(seen.st_mode, seen.st_ino in side.blurred)

    def times(self, side, seen):
        """Times that were set, and no others; and none of change that goes back."""
        before = side.changed.get(seen.st_ino, seen.st_ctime_ns)
        if side.is_mount and seen.st_ctime_ns < before:
            sys.exit(f"seed {self.seed}: the time of change of inode {seen.st_ino} went back, from {before} to {seen.st_ctime_ns}")
        side.changed[seen.st_ino] = seen.st_ctime_ns
        # What goes through a pipe changes its time on a local disk only: docs/posix.md.
        if stat.S_ISFIFO(seen.st_mode):
            return None
        return seen.st_mtime_ns if seen.st_mtime_ns < LONG_AGO else "by the clock", Read(seen.st_atime_ns)

    def look(self, side, name):
        try:
            seen = os.stat(name, dir_fd=side.root, follow_symlinks=False)
        except OSError as error:
            return errno.errorcode[error.errno]
        size = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size
        return self.mode(side, seen), seen.st_nlink, seen.st_uid, seen.st_gid, size, seen.st_rdev, self.times(side, seen)

    def look_at_open(self, side, fd):
        try:
            seen = os.fstat(fd)
        except OSError as error:
            return errno.errorcode[error.errno]
        return self.mode(side, seen), seen.st_nlink, 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size, self.times(side, seen)

    def tree(self, side):
        found = {}
        for base, folders, files, fd in os.fwalk(b".", dir_fd=side.root):
            for name in folders + files + [b"."]:
                path = os.path.join(base, name)
                look = self.look(side, path)
                if os.path.basename(path) == b"." and path != b"./.":
                    continue
                found[path] = [look, {key: os.getxattr(side.path(path), key, follow_symlinks=False)
                                      for key in sorted(os.listxattr(side.path(path), follow_symlinks=False))}]
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                if stat.S_ISREG(mode):
                    with open(side.path(path), "rb") as file:
                        found[path].append(file.read())
                elif stat.S_ISLNK(mode):
                    found[path].append(os.readlink(name, dir_fd=fd))
        return found

    def compare(self, number, what, results):
        if results[0] != results[1]:
            short = [repr(result)[:300] for result in results]
            sys.exit(f"seed {self.seed}, operation {number}: {what}\n  mount: {short[0]}\n  local: {short[1]}")

    def compare_trees(self, number):
        trees = [self.tree(side) for side in self.sides]
        for side in self.sides:
            # A local disk gives the numbers of inodes that are gone to others.
            there = {os.fstat(fd).st_ino for fd in side.open.values()}
            for path in os.fwalk(b".", dir_fd=side.root):
                there |= {os.stat(name, dir_fd=path[3], follow_symlinks=False).st_ino for name in path[1] + path[2] + [b"."]}
            side.blurred &= there
        for path in sorted(trees[0].keys() | trees[1].keys()):
            seen = [tree.get(path) for tree in trees]
            if seen[0] != seen[1]:
                if None not in seen and len(seen[0]) == 3 and seen[0][2] != seen[1][2]:
                    pairs = zip(*(one[2] for one in seen))
                    first = next((at for at, (a, b) in enumerate(pairs) if a != b), "an end")
                    sys.exit(f"seed {self.seed}, after operation {number}: bytes of {path!r} differ from {first} on")
                self.compare(number, f"afterwards, {path!r}", [seen_one[:2] if seen_one else None for seen_one in seen])

    def drawn(self, action):
        """What an operation was given, for whoever reads of its failure."""
        found = {}
        if not hasattr(action, "__code__"):
            return found
        for name, cell in zip(action.__code__.co_freevars, action.__closure__ or ()):
            value = cell.cell_contents
            if callable(value):
                found |= self.drawn(value)
            elif not isinstance(value, Oracle) and not (isinstance(value, bytes) and len(value) >= 300):
                found[name] = value
        return found

    def run(self, operations):
        kinds, weights = list(self.WEIGHTS), list(self.WEIGHTS.values())
        for number in range(operations):
            kind = self.random.choices(kinds, weights)[0]
            user = USERS[0] if self.random.random() < 0.6 else self.random.choice(USERS[1:])
            umask = self.random.choice([0o022, 0o077, 0])
            self.user, before = user, self.random.getstate()
            action = getattr(self, "op_" + kind)()
            if not action:
                continue
            results = [self.run_on(side, user, umask, action) for side in self.sides]
            what = f"{kind} as {user[0]} with mask {umask:o}: {self.drawn(action)}"
            self.compare(number, what, results)
            opened = [{slot: self.look_at_open(side, fd) for slot, fd in side.open.items()} for side in self.sides]
            self.compare(number, what + ", what is open afterwards", opened)
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.refused += isinstance(results[0], str)
            if number % 100 == 99:
                self.compare_trees(number)
        self.compare_trees(operations)
        print(f"{sum(self.counts.values())} operations agreed, {self.refused} of them refused; {self.counts}")


if __name__ == "__main__":
    Oracle(sys.argv[1], sys.argv[2], int(sys.argv[3])).run(int(sys.argv[4]))
