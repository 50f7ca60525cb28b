/* Counts a program's writes and flushes below a folder, and lets one of them fail.
 *
 * Loaded before libc (LD_PRELOAD). FAULT_ROOT: files whose path begins with it count.
 * FAULT_LOG: a line for each counted call, "w INODE OFFSET SIZE" or "s INODE". FAULT_AT:
 * the call, from 1, that is FAULT_KIND: "kill" (SIGKILL before it), "eio" or "enospc".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int calls;

/* Count a call on a file; 0 to go on, or the error it should return. */
static int counted(int fd, char what, long long offset, long long size) {
  static int log_fd = -2;
  char link[64], path[4096], line[128];
  const char *root = getenv("FAULT_ROOT"), *log = getenv("FAULT_LOG");
  struct stat of;
  ssize_t length;
  if (!root || !log) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  if (strncmp(path, root, strlen(root)) || fstat(fd, &of)) return 0;
  if (log_fd == -2) log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  int number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
  if (at && kind && number == atoi(at)) {
    if (!strcmp(kind, "kill")) kill(getpid(), SIGKILL);
    if (what == 's') { /* the pages are gone, and the system thinks them stored */
      length = snprintf(line, sizeof line, "f %llu\n", (unsigned long long)of.st_ino);
      syscall(SYS_write, log_fd, line, length);
    }
    return strcmp(kind, "eio") ? ENOSPC : EIO;
  }
  if (what == 'w')
    length = snprintf(line, sizeof line, "w %llu %lld %lld\n",
                      (unsigned long long)of.st_ino, offset, size);
  else
    length = snprintf(line, sizeof line, "s %llu\n", (unsigned long long)of.st_ino);
  /* A flush is noted when it is done: what follows must not look stored. */
  if (what == 'w') syscall(SYS_write, log_fd, line, length);
  else {
    int failed = syscall(SYS_fdatasync, fd) ? errno : 0;
    if (!failed) syscall(SYS_write, log_fd, line, length);
    return failed ? failed : -1;
  }
  return 0;
}

static long long end_of(int fd) {
  struct stat of;
  if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &of) ? 0 : of.st_size;
  return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t size) {
  int wrong = counted(fd, 'w', end_of(fd), size);
  if (wrong) return errno = wrong, -1;
  return syscall(SYS_write, fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  int wrong = counted(fd, 'w', offset, size);
  if (wrong) return errno = wrong, -1;
  return syscall(SYS_pwrite64, fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  return pwrite64(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  long long size = 0;
  for (int i = 0; i < count; i++) size += parts[i].iov_len;
  int wrong = counted(fd, 'w', end_of(fd), size);
  if (wrong) return errno = wrong, -1;
  return syscall(SYS_writev, fd, parts, count);
}

static int flushed(int fd, long call) {
  int wrong = counted(fd, 's', 0, 0);
  if (wrong == -1) return 0;
  if (wrong) return errno = wrong, -1;
  return syscall(call, fd);
}

int fsync(int fd) { return flushed(fd, SYS_fsync); }
int fdatasync(int fd) { return flushed(fd, SYS_fdatasync); }
