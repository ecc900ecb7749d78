/*
 * Listing: the entries of an open directory, one after the other, from any of them.
 *
 * What the kernel is told as the offset of an entry is the backing filesystem's own (d_off), where the next one is. Where
 * names collide in a filesystem's hash that is not enough: ext4 gives all of them one offset, and going on from there
 * means beginning with the first of them again. The filesystem itself remembers how far it came; but a program whose
 * buffer is smaller than what it was told at a time comes back in the middle. So an entry that leads to where it was
 * read has an offset of its own here, which stands for the filesystem's offset and the names that were told since.
 *
 * Who reads in small pieces comes back again and again to what is in the buffer, and finds it there until the directory
 * changes.
 */
#include "mirror.h"

#include <sys/syscall.h>

/* Those more are told with the filesystem's offset, and perhaps again. */
enum { STUCK_MAX = 1 << 16 };

/* An entry that leads to where it was read. */
struct stuck {
    uint64_t offset;   /* as the kernel is told */
    uint64_t position; /* where it was read, and leads to */
    char *name;
};

void listing_begin(struct listing *listing, int fd) {
    listing->fd = fd;
    listing->offset = listing->position = listing->buffer_begins = 0;
    listing->at = listing->end = 0;
    listing->stuck = NULL;
    listing->stuck_count = 0;
}

void listing_end(struct listing *listing) {
    for (size_t i = 0; i < listing->stuck_count; i++) free(listing->stuck[i].name);
    free(listing->stuck);
    close(listing->fd);
}

/* ---- entries that lead nowhere --------------------------------------------------------------------------- */

static const struct stuck *stuck_by_name(const struct listing *listing, uint64_t position, const char *name) {
    for (size_t i = 0; i < listing->stuck_count; i++)
        if (listing->stuck[i].position == position && strcmp(listing->stuck[i].name, name) == 0)
            return &listing->stuck[i];
    return NULL;
}

static const struct stuck *stuck_by_offset(const struct listing *listing, uint64_t offset) {
    for (size_t i = 0; i < listing->stuck_count; i++)
        if (listing->stuck[i].offset == offset) return &listing->stuck[i];
    return NULL;
}

/* A new one; NULL if there are too many, or no memory. */
static const struct stuck *remember(struct listing *listing, uint64_t position, const char *name) {
    size_t count = listing->stuck_count;
    if (count == STUCK_MAX) return NULL;
    if ((count & (count - 1)) == 0) { /* full at each power of two */
        struct stuck *longer = realloc(listing->stuck, (count == 0 ? 1 : count * 2) * sizeof *longer);
        if (longer == NULL) return NULL;
        listing->stuck = longer;
    }
    struct stuck one = {.offset = position + 1, .position = position, .name = strdup(name)};
    if (one.name == NULL) return NULL;
    while (stuck_by_offset(listing, one.offset) != NULL) one.offset++;
    listing->stuck[count] = one;
    listing->stuck_count++;
    return &listing->stuck[count];
}

/* Whether this name, which was read at that position, was told before the kernel heard of this offset. */
static bool was_told(const struct listing *listing, const struct stuck *last, const char *name) {
    const struct stuck *one = stuck_by_name(listing, last->position, name);
    return one != NULL && one <= last; /* in the order of telling */
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

/* When the directory changed last, as far as the filesystem tells. */
static struct statx_timestamp changed(const struct listing *listing) {
    struct statx attributes = {0};
    if (statx(listing->fd, "", AT_EMPTY_PATH, STATX_CTIME, &attributes)) return (struct statx_timestamp){0};
    return attributes.stx_ctime;
}

const struct linux_dirent64 *listing_next(struct listing *listing, int *error) {
    *error = 0;
    if (listing->at >= listing->end) {
        struct statx_timestamp before = changed(listing);
        long size = syscall(SYS_getdents64, listing->fd, listing->entries, LISTING_MAX);
        if (size < 0) *error = -errno;
        if (size <= 0) return NULL;
        listing->changed = before;
        listing->buffer_begins = listing->position;
        listing->at = 0;
        listing->end = (size_t)size;
    }
    return (const struct linux_dirent64 *)(listing->entries + listing->at);
}

uint64_t listing_offset(struct listing *listing, const struct linux_dirent64 *entry) {
    if ((uint64_t)entry->d_off != listing->position) return (uint64_t)entry->d_off;
    const struct stuck *one = stuck_by_name(listing, listing->position, entry->d_name);
    if (one == NULL) one = remember(listing, listing->position, entry->d_name);
    return one == NULL ? (uint64_t)entry->d_off : one->offset;
}

void listing_take(struct listing *listing, const struct linux_dirent64 *entry, uint64_t offset) {
    listing->offset = offset;
    listing->position = (uint64_t)entry->d_off;
    listing->at += entry->d_reclen;
}

/* Goes to after the entry that was told with this offset, if it is in the buffer. */
static bool find_in_buffer(struct listing *listing, uint64_t offset) {
    uint64_t position = listing->buffer_begins;
    for (size_t at = 0; at < listing->end;) {
        const struct linux_dirent64 *entry = (const struct linux_dirent64 *)(listing->entries + at);
        uint64_t told = (uint64_t)entry->d_off;
        if (told == position) {
            const struct stuck *one = stuck_by_name(listing, position, entry->d_name);
            if (one != NULL) told = one->offset;
        }
        at += entry->d_reclen;
        position = (uint64_t)entry->d_off;
        if (told != offset) continue;
        struct statx_timestamp now = changed(listing);
        if (now.tv_sec != listing->changed.tv_sec || now.tv_nsec != listing->changed.tv_nsec) return false;
        listing->at = at;
        listing->position = position;
        listing->offset = offset;
        return true;
    }
    return false;
}

int listing_seek(struct listing *listing, uint64_t offset) {
    if (offset == listing->offset || find_in_buffer(listing, offset)) return 0;
    const struct stuck *last = stuck_by_offset(listing, offset);
    uint64_t position = last == NULL ? offset : last->position;
    if (lseek(listing->fd, (off_t)position, SEEK_SET) < 0) return -errno;
    listing->at = listing->end = 0;
    listing->position = position;
    int error = 0;
    const struct linux_dirent64 *entry;
    while (last != NULL && listing->position == position && (entry = listing_next(listing, &error)) != NULL &&
           was_told(listing, last, entry->d_name))
        listing_take(listing, entry, offset);
    listing->offset = offset;
    return error;
}
