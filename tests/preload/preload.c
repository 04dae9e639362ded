/* Preloaded into the program by tests (mod.rs says how): calls of the C library on files fail, or what was
 * synced is noted, so that a cut of power can be played. Linux, 64 bits, glibc. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATHS 4096
#define SHORT (-1)

enum call { NONE, OPEN, READ, WRITE, SYNC, RENAME, MAP, TRUNCATE, UNLINK, LINK, MKDIR, THREAD, RANDOM };
static const char *const CALLS[] = {"",         "open",   "read", "write", "sync",   "rename", "map",
                                    "truncate", "unlink", "link", "mkdir", "thread", "random"};
static const struct {
    const char *name;
    int number;
} ERRORS[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EINTR", EINTR},   {"ENOMEM", ENOMEM},
              {"EMFILE", EMFILE}, {"EAGAIN", EAGAIN}, {"ENOSYS", ENOSYS}, {"SHORT", SHORT}};

/* Of all processes of a test together: calls seen, calls failed. */
static struct counts {
    _Atomic uint64_t seen, failed;
} *counts;
static enum call chosen;
static int error, ever;
static uint64_t nth;
static char below[PATHS];
/* The folder of what was synced, and the one that it is noted of. */
static char kept[PATHS], noted[PATHS];

/* OFFSHOOT_TEST_FAULT: call, error, number, "once" or "ever", path, file of the counts.
 * OFFSHOOT_TEST_CUT: path, folder. Paths are absolute and without spaces. */
__attribute__((constructor)) static void begin(void) {
    char call[32], name[32], way[32], file[PATHS];
    const char *cut = getenv("OFFSHOOT_TEST_CUT"), *fault = getenv("OFFSHOOT_TEST_FAULT");
    if (cut && sscanf(cut, "%4095s %4095s", noted, kept) != 2) abort();
    if (!fault) return;
    if (sscanf(fault, "%31s %31s %lu %31s %4095s %4095s", call, name, &nth, way, below, file) != 6) abort();
    ever = strcmp(way, "ever") == 0;
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC);
    void *map = (void *)syscall(SYS_mmap, 0, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map == MAP_FAILED) abort();
    counts = map;
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (strcmp(ERRORS[i].name, name) == 0) error = ERRORS[i].number;
    for (size_t i = 1; i < sizeof CALLS / sizeof *CALLS; i++)
        if (strcmp(CALLS[i], call) == 0) chosen = i;
    if (!chosen || !error) abort();
}

static int starts(const char *path, const char *with) { return strncmp(path, with, strlen(with)) == 0; }

/* The path of an open file. */
static int path_of(int fd, char *path) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATHS - 1);
    path[n > 0 ? n : 0] = 0;
    return n > 0;
}

static int is_below(int folder, const char *path) {
    char whole[2 * PATHS];
    if (path[0] == '/') return starts(path, below);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATHS)) return 0;
    } else if (!path_of(folder, whole)) {
        return 0;
    }
    size_t n = strlen(whole);
    snprintf(whole + n, sizeof whole - n, "/%s", path);
    return starts(whole, below);
}

/* Whether this one of the calls is to fail. */
static int due(void) {
    uint64_t number = atomic_fetch_add(&counts->seen, 1) + 1;
    int now = ever ? number >= nth : number == nth;
    if (now) atomic_fetch_add(&counts->failed, 1);
    return now;
}

static int path_fails(enum call call, int folder, const char *path) {
    if (call != chosen || !is_below(folder, path) || !due()) return 0;
    errno = error;
    return 1;
}

static int file_fails(enum call call, int fd) {
    char path[PATHS];
    if (call != chosen || !path_of(fd, path) || !starts(path, below) || !due()) return 0;
    errno = error;
    return 1;
}

/* Whether a transfer fails; one that is to be short has its length halved. */
static int transfer_fails(enum call call, int fd, size_t *length) {
    if (!file_fails(call, fd)) return 0;
    if (error != SHORT) return 1;
    if (*length > 1) *length /= 2;
    return 0;
}

static int open_mode(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

static int opened(int folder, const char *path, int flags, int mode) {
    if (path_fails(OPEN, folder, path)) return -1;
    return syscall(SYS_openat, folder, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = open_mode(flags, rest);
    va_end(rest);
    return opened(AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = open_mode(flags, rest);
    va_end(rest);
    return opened(AT_FDCWD, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = open_mode(flags, rest);
    va_end(rest);
    return opened(folder, path, flags, mode);
}

DIR *opendir(const char *path) {
    static DIR *(*real)(const char *);
    if (path_fails(OPEN, AT_FDCWD, path)) return NULL;
    if (!real) real = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    return real(path);
}

ssize_t read(int fd, void *to, size_t length) {
    return transfer_fails(READ, fd, &length) ? -1 : syscall(SYS_read, fd, to, length);
}

ssize_t pread64(int fd, void *to, size_t length, off64_t at) {
    return transfer_fails(READ, fd, &length) ? -1 : syscall(SYS_pread64, fd, to, length, at);
}

ssize_t write(int fd, const void *from, size_t length) {
    return transfer_fails(WRITE, fd, &length) ? -1 : syscall(SYS_write, fd, from, length);
}

ssize_t writev(int fd, const struct iovec *from, int count) {
    size_t length = from ? from->iov_len : 0;
    if (transfer_fails(WRITE, fd, &length)) return -1;
    if (from && length < from->iov_len) return syscall(SYS_write, fd, from->iov_base, length);
    return syscall(SYS_writev, fd, from, count);
}

ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) {
    return transfer_fails(WRITE, fd, &length) ? -1 : syscall(SYS_pwrite64, fd, from, length, at);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    if (transfer_fails(WRITE, out, &length)) return -1;
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}

ssize_t sendfile64(int out, int in, off64_t *from, size_t length) {
    return transfer_fails(WRITE, out, &length) ? -1 : syscall(SYS_sendfile, out, in, from, length);
}

int ftruncate64(int fd, off64_t length) {
    return file_fails(TRUNCATE, fd) ? -1 : syscall(SYS_ftruncate, fd, length);
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t from) {
    if (fd >= 0 && file_fails(MAP, fd)) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, from);
}

int rename(const char *from, const char *to) {
    if (path_fails(RENAME, AT_FDCWD, to)) return -1;
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path) {
    return path_fails(UNLINK, AT_FDCWD, path) ? -1 : syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int unlinkat(int folder, const char *path, int flags) {
    return path_fails(UNLINK, folder, path) ? -1 : syscall(SYS_unlinkat, folder, path, flags);
}

int rmdir(const char *path) {
    return path_fails(UNLINK, AT_FDCWD, path) ? -1 : syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    return path_fails(LINK, b, to) ? -1 : syscall(SYS_linkat, a, from, b, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    return path_fails(MKDIR, AT_FDCWD, path) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*work)(void *), void *with) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (chosen == THREAD && due()) return error;
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, how, work, with);
}

ssize_t getrandom(void *to, size_t length, unsigned flags) {
    if (chosen == RANDOM && due()) {
        errno = error;
        return -1;
    }
    return syscall(SYS_getrandom, to, length, flags);
}

/* What names a file for good: inodes are used again. */
static int key_of(int fd, const char *name, char *key, unsigned *mode) {
    struct statx of;
    int flags = name[0] ? AT_SYMLINK_NOFOLLOW : AT_EMPTY_PATH;
    if (syscall(SYS_statx, fd, name, flags, STATX_INO | STATX_BTIME | STATX_TYPE, &of)) return 0;
    snprintf(key, 96, "%llu.%lld.%09u", (unsigned long long)of.stx_ino, (long long)of.stx_btime.tv_sec,
             of.stx_btime.tv_nsec);
    *mode = of.stx_mode;
    return 1;
}

/* A file's bytes. SQLite's locks on a file are lost where any descriptor of it is closed: it is read by the
 * one that is there if that can read. */
static int copy(int fd, int to) {
    char buffer[1 << 16], link[32];
    int flags = syscall(SYS_fcntl, fd, F_GETFL), own = -1;
    if ((flags & O_ACCMODE) == O_WRONLY) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        own = fd = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    }
    long at = 0, n = -1;
    while (fd >= 0 && (n = syscall(SYS_pread64, fd, buffer, sizeof buffer, at)) > 0) {
        if (syscall(SYS_write, to, buffer, n) != n) n = -1;
        if (n < 0) break;
        at += n;
    }
    if (own >= 0) syscall(SYS_close, own);
    return n == 0;
}

/* A folder's names, with what each names. */
static int list(int fd, int to) {
    char line[512], key[96], link[32];
    unsigned mode;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int own = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = own < 0 ? NULL : fdopendir(own);
    if (!folder) return 0;
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (!key_of(own, entry->d_name, key, &mode)) continue;
        int n = snprintf(line, sizeof line, "%s %s %s\n", S_ISDIR(mode) ? "folder" : "file", key, entry->d_name);
        if (syscall(SYS_write, to, line, n) != n) n = -1;
        if (n < 0) break;
    }
    closedir(folder);
    return !entry;
}

/* Notes what a file or a folder is now: so it is after a cut of power. Nothing need reach the medium. */
static int note(int fd) {
    static _Atomic uint64_t number;
    char key[96], part[2 * PATHS], whole[2 * PATHS];
    unsigned mode;
    if (!key_of(fd, "", key, &mode)) return -1;
    snprintf(whole, sizeof whole, "%s/%s", kept, key);
    unsigned long long mine = atomic_fetch_add(&number, 1);
    snprintf(part, sizeof part, "%s/part.%d.%llu", kept, (int)getpid(), mine);
    /* One after another: an older copy must not take the place of a newer one. */
    int turn = syscall(SYS_openat, AT_FDCWD, kept, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (turn < 0) return -1;
    syscall(SYS_flock, turn, LOCK_EX);
    int to = syscall(SYS_openat, AT_FDCWD, part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int done = to >= 0 && (S_ISDIR(mode) ? list(fd, to) : copy(fd, to));
    if (to >= 0) syscall(SYS_close, to);
    int put = done ? syscall(SYS_renameat2, AT_FDCWD, part, AT_FDCWD, whole, 0) : -1;
    syscall(SYS_close, turn);
    return put;
}

static int synced(int fd, long call) {
    char path[PATHS];
    if (file_fails(SYNC, fd)) return -1;
    if (!kept[0] || !path_of(fd, path) || !starts(path, noted)) return syscall(call, fd);
    return note(fd);
}

int fsync(int fd) { return synced(fd, SYS_fsync); }

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
