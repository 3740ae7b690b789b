/* Makes the n-th call of the C library on a file of the run fail, so that a test can try every n.
 * LORALEI_FAIL_AT: n, counted from 1; LORALEI_FAIL_HOW: ENOSPC, EIO, EINTR (write and read, once) or SHORT (write, half of it);
 * LORALEI_FAIL_PATH: text that the path of a counted call has. When the call is reached, LORALEI_FAIL_SAID is made as a file. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

static int calls = 0;

static int is_ours(const char *path) {
    const char *part = getenv("LORALEI_FAIL_PATH");
    return part && path && strstr(path, part) != NULL;
}

static int is_ours_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

/* Whether this call is the one: counts it. */
static int fails(void) {
    const char *at = getenv("LORALEI_FAIL_AT");
    if (!at || __sync_add_and_fetch(&calls, 1) != atoi(at)) return 0;
    const char *said = getenv("LORALEI_FAIL_SAID");
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    if (said) close(real(said, O_CREAT | O_WRONLY, 0644));
    return 1;
}

static int how_is(const char *how) { const char *now = getenv("LORALEI_FAIL_HOW"); return now && !strcmp(now, how); }

static int error(void) { return how_is("EIO") ? EIO : ENOSPC; }

static int open_with(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    if (is_ours(path) && fails() && !how_is("EINTR") && !how_is("SHORT")) { errno = error(); return -1; }
    return real(path, flags, mode);
}

#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE return open_with("open", path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_with("open64", path, flags, mode); }

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (is_ours_fd(fd) && fails()) {
        if (how_is("SHORT")) return real(fd, bytes, count / 2 + count % 2);
        errno = how_is("EINTR") ? EINTR : error();
        return -1;
    }
    return real(fd, bytes, count);
}

ssize_t read(int fd, void *bytes, size_t count) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    if (is_ours_fd(fd) && fails() && !how_is("SHORT")) { errno = how_is("EINTR") ? EINTR : EIO; return -1; }
    return real(fd, bytes, count);
}

#define PLAIN(name, parameters, arguments, ours) \
    int name parameters { \
        int (*real) parameters = dlsym(RTLD_NEXT, #name); \
        if ((ours) && fails() && !how_is("EINTR") && !how_is("SHORT")) { errno = error(); return -1; } \
        return real arguments; \
    }
PLAIN(fsync, (int fd), (fd), is_ours_fd(fd))
PLAIN(ftruncate64, (int fd, off64_t length), (fd, length), is_ours_fd(fd))
PLAIN(rename, (const char *from, const char *to), (from, to), is_ours(to))
PLAIN(unlink, (const char *path), (path), is_ours(path))
PLAIN(mkdir, (const char *path, mode_t mode), (path, mode), is_ours(path))
