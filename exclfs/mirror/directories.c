/*
 * Directories: opening and listing them.
 *
 * The offset of an entry is the backing filesystem's own (d_off; listing.c has the exception), so telldir and seekdir
 * mean what they mean there, and a listing that goes on while others create and delete sees each stable entry exactly
 * once.
 *
 * The kernel begins each listing with READDIRPLUS, and goes on with it only if somebody asks for an inode meanwhile. An
 * entry that is looked up for it costs ten times one that is only named, and a tenth of a lookup later. So a listing
 * begins with a few, and whoever asks for their inodes gets all others along. Who reads all names first and then asks,
 * as fts(3) does, is found out by lookups that follow a short beginning: after some of them listings begin long again.
 */
#include "mirror.h"

#include <dirent.h>

enum { FIRST_FEW = 8, MISSED_ENOUGH = 32, MISSED_MOST = 64 }; /* entries; lookups; lookups */

struct open_directory {
    struct inode *inode;
    pthread_mutex_t lock;
    struct listing listing;
};

static struct open_directory *directory_of(uint64_t fh) { return (struct open_directory *)(uintptr_t)fh; }

static void directory_free(struct mirror *mirror, struct open_directory *directory) {
    listing_end(&directory->listing);
    open_closed(mirror);
    pthread_mutex_destroy(&directory->lock);
    inode_put(mirror, directory->inode);
    free(directory);
}

void op_opendir(struct worker *worker, const struct request *request) {
    struct mirror *mirror = worker->mirror;
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    bool allowed = open_begins(mirror);
    int path = allowed ? backing_get(mirror, inode) : -EMFILE;
    int fd = path < 0 ? path : backing_reopen(mirror, path, O_RDONLY | O_DIRECTORY);
    if (path >= 0) backing_put(mirror, inode);
    struct open_directory *directory = fd < 0 ? NULL : malloc(sizeof *directory);
    if (directory == NULL) {
        if (fd >= 0) close(fd);
        if (allowed) open_closed(mirror);
        inode_put(mirror, inode);
        reply_error(worker, request->header->unique, fd < 0 ? -fd : ENOMEM);
        return;
    }
    directory->inode = inode;
    listing_begin(&directory->listing, fd);
    pthread_mutex_init(&directory->lock, NULL);
    struct exclfs_open_out out = {.fh = (uint64_t)(uintptr_t)directory};
    if (reply(worker, request->header->unique, &out, sizeof out)) directory_free(mirror, directory);
}

static unsigned char type_of(struct mirror *mirror, struct open_directory *directory,
                             const struct linux_dirent64 *entry) {
    if (entry->d_type != DT_UNKNOWN) return entry->d_type;
    struct statx attributes;
    int error = stat_at(mirror, directory->listing.fd, entry->d_name, &attributes);
    return error ? DT_UNKNOWN : IFTODT(attributes.stx_mode);
}

static void put_name(const struct worker *worker, struct open_directory *directory, struct fuse_dirent *to,
                     const struct linux_dirent64 *entry, size_t length, uint64_t offset) {
    to->ino = shown_ino(worker->mirror, directory->inode->key.dev, entry->d_ino);
    to->off = offset;
    to->namelen = (uint32_t)length;
    to->type = type_of(worker->mirror, directory, entry);
    memcpy(to->name, entry->d_name, length);
}

/* An entry that vanished, or is "." or "..", is told without a lookup: nodeid 0. */
static void put_inode(struct worker *worker, struct open_directory *directory, struct fuse_direntplus *to) {
    char name[NAME_MAX + 1];
    memcpy(name, to->dirent.name, to->dirent.namelen);
    name[to->dirent.namelen] = 0;
    to->entry_out = (struct fuse_entry_out){0};
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return;
    struct statx attributes;
    if (stat_at(worker->mirror, directory->listing.fd, name, &attributes)) return;
    struct inode *inode = inode_seen(worker->mirror, directory->inode, name, directory->listing.fd, &attributes, 1);
    if (inode == NULL) return;
    fill_entry(worker->mirror, inode, &attributes, &to->entry_out);
    inode_put(worker->mirror, inode);
}

static void forget_listed(struct mirror *mirror, const char *at, const char *end) {
    while (at < end) {
        const struct fuse_direntplus *plus = (const struct fuse_direntplus *)at;
        if (plus->entry_out.nodeid != 0) inode_forget(mirror, plus->entry_out.nodeid, 1);
        at += FUSE_DIRENTPLUS_SIZE(plus);
    }
}

/* ---- how long a listing begins --------------------------------------------------------------------------- */

/* The directory and no other: a new one may have its nodeid as soon as it has been removed. */
static uint64_t name_of(const struct inode *directory) {
    return directory->nodeid ^ (uint64_t)directory->generation << 32;
}

static atomic_ulong *remembered(struct mirror *mirror, const struct inode *directory) {
    return &mirror->listings.begun_short[directory->nodeid % LISTINGS];
}

/* How many entries the first packet of a listing may look up. Neither number is exact when threads meet: it is a guess. */
static size_t first_lookups(struct mirror *mirror) {
    unsigned missed = atomic_load_explicit(&mirror->listings.missed, memory_order_relaxed);
    if (missed > 0) atomic_store_explicit(&mirror->listings.missed, missed - 1, memory_order_relaxed);
    return missed >= MISSED_ENOUGH ? SIZE_MAX : FIRST_FEW;
}

static void listing_cut(struct mirror *mirror, const struct inode *directory) {
    atomic_store_explicit(remembered(mirror, directory), name_of(directory), memory_order_relaxed);
}

void listing_missed(struct mirror *mirror, const struct inode *directory) {
    if (atomic_load_explicit(remembered(mirror, directory), memory_order_relaxed) != name_of(directory)) return;
    unsigned missed = atomic_load_explicit(&mirror->listings.missed, memory_order_relaxed);
    if (missed < MISSED_MOST) atomic_store_explicit(&mirror->listings.missed, missed + 1, memory_order_relaxed);
}

static void list(struct worker *worker, const struct request *request, bool plus) {
    const struct fuse_read_in *in = request->argument;
    struct open_directory *directory = directory_of(in->fh);
    size_t room = in->size < BODY_MAX ? in->size : BODY_MAX, used = 0;
    size_t lookups = plus && in->offset == 0 ? first_lookups(worker->mirror) : SIZE_MAX;

    pthread_mutex_lock(&directory->lock);
    struct listing *listing = &directory->listing;
    int error = listing_seek(listing, in->offset);
    const struct linux_dirent64 *entry;
    while (!error && lookups > 0 && (entry = listing_next(listing, &error)) != NULL) {
        size_t length = strlen(entry->d_name);
        size_t size = FUSE_REC_ALIGN((plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET) + length);
        if (length > NAME_MAX || size > room - used) break;
        memset(worker->out + used, 0, size);
        uint64_t offset = listing_offset(listing, entry);
        if (plus) {
            struct fuse_direntplus *to = (struct fuse_direntplus *)(worker->out + used);
            put_name(worker, directory, &to->dirent, entry, length, offset);
            put_inode(worker, directory, to);
            if (to->entry_out.nodeid != 0) lookups--;
        } else
            put_name(worker, directory, (struct fuse_dirent *)(worker->out + used), entry, length, offset);
        used += size;
        listing_take(listing, entry, offset);
    }
    pthread_mutex_unlock(&directory->lock);
    if (lookups == 0) listing_cut(worker->mirror, directory->inode);

    if (error && used == 0) reply_error(worker, request->header->unique, -error);
    else if (reply(worker, request->header->unique, worker->out, used) && plus)
        forget_listed(worker->mirror, worker->out, worker->out + used);
}

void op_readdir(struct worker *worker, const struct request *request) { list(worker, request, false); }
void op_readdirplus(struct worker *worker, const struct request *request) { list(worker, request, true); }

void op_releasedir(struct worker *worker, const struct request *request) {
    const struct fuse_release_in *in = request->argument;
    directory_free(worker->mirror, directory_of(in->fh));
    reply_error(worker, request->header->unique, 0);
}

void op_fsyncdir(struct worker *worker, const struct request *request) {
    const struct fuse_fsync_in *in = request->argument;
    int fd = directory_of(in->fh)->listing.fd;
    int failed = in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd);
    reply_error(worker, request->header->unique, failed ? errno : 0);
}
