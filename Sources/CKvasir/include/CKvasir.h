// What Swift's Glibc module hides or can't import: Linux calls behind _GNU_SOURCE, epoll, and the CMSG_* macros.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/types.h>

/// A sealable, close-on-exec memfd of `size` bytes, sealed against growing and shrinking; -1 and errno on failure.
int kv_memfd(const char *name, uint64_t size);

/// A second descriptor of the same memfd that can only be mapped read-only; -1 and errno on failure.
int kv_memfd_reopen_read_only(int fd);

/// Faults the range in for writing. 0, or an errno value: unlike a touch, it can fail without a signal.
int kv_populate_write(void *address, size_t length);

/// Marks the range so that a forked child doesn't inherit it. 0 or an errno value.
int kv_dont_fork(void *address, size_t length);

/// Asks for huge pages. 0 or an errno value; success does not mean that the kernel obeys.
int kv_advise_huge_pages(void *address, size_t length);

/// Accepts a connection as a non-blocking, close-on-exec descriptor; -1 and errno when none waits.
int kv_accept(int listener);

/// sendmsg of `length` bytes with `fd` as ancillary data (none if fd < 0), without SIGPIPE.
ssize_t kv_send_with_fd(int socket, const void *bytes, size_t length, int fd);

/// recvmsg into `bytes`; a descriptor that came along (close-on-exec) goes into *fd, else *fd = -1. Surplus descriptors are closed.
ssize_t kv_receive_with_fd(int socket, void *bytes, size_t length, int *fd);

/// Process id of the peer of a Unix socket, 0 when it can't be told (another pid namespace); *uid gets its user.
pid_t kv_peer_process(int socket, uid_t *uid);

/// A pidfd of the peer of a Unix socket: readable once the process is gone; -1 where it can't be had.
int kv_peer_pidfd(int socket);

/// Has the calling process sent SIGTERM when the thread that started it ends, if it is still a child of `parent`. 0, or an errno value.
int kv_end_with_parent(pid_t parent);

/// Gives the calling thread a name of at most 15 bytes.
void kv_name_thread(const char *name);

/// Ties the main thread of a process (0: the calling thread) to the `index`-th processor that this process may use, or, with
/// -1, to none in particular. 0, or an errno value; ENOENT where there are not so many processors.
int kv_pin(pid_t process, int index);

/// O_DIRECT: the flag of open that reads and writes past the page cache.
int kv_open_flag_direct(void);

/// fallocate: gives the file `length` bytes in real blocks, which read as zeros. 0, or an errno value; EOPNOTSUPP where the
/// file system can't.
int kv_allocate(int fd, uint64_t length);
