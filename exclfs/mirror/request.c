/*
 * A request: a message of the kernel, taken apart.
 *
 * Nothing past this file looks at a length: what request_parse lets through has a whole fixed part, names that end
 * inside the message and data of the size it claims. It is pure, and fuzzed (tests/mirror/test_request.py).
 */
#include "mirror.h"

enum tail { NOTHING, ONE_NAME, TWO_NAMES, DATA, NAME_AND_DATA, FORGETS };

static const struct shape {
    unsigned char known;
    unsigned char tail;
    unsigned short fixed; /* bytes */
} shapes[] = {
    [FUSE_LOOKUP] = {1, ONE_NAME, 0},
    [FUSE_FORGET] = {1, NOTHING, sizeof(struct fuse_forget_in)},
    [FUSE_GETATTR] = {1, NOTHING, sizeof(struct fuse_getattr_in)},
    [FUSE_SETATTR] = {1, NOTHING, sizeof(struct fuse_setattr_in)},
    [FUSE_READLINK] = {1, NOTHING, 0},
    [FUSE_SYMLINK] = {1, TWO_NAMES, 0},
    [FUSE_MKNOD] = {1, ONE_NAME, sizeof(struct fuse_mknod_in)},
    [FUSE_MKDIR] = {1, ONE_NAME, sizeof(struct fuse_mkdir_in)},
    [FUSE_UNLINK] = {1, ONE_NAME, 0},
    [FUSE_RMDIR] = {1, ONE_NAME, 0},
    [FUSE_RENAME] = {1, TWO_NAMES, sizeof(struct fuse_rename_in)},
    [FUSE_LINK] = {1, ONE_NAME, sizeof(struct fuse_link_in)},
    [FUSE_OPEN] = {1, NOTHING, sizeof(struct fuse_open_in)},
    [FUSE_READ] = {1, NOTHING, sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {1, DATA, sizeof(struct fuse_write_in)},
    [FUSE_STATFS] = {1, NOTHING, 0},
    [FUSE_RELEASE] = {1, NOTHING, sizeof(struct fuse_release_in)},
    [FUSE_FSYNC] = {1, NOTHING, sizeof(struct fuse_fsync_in)},
    [FUSE_SETXATTR] = {1, NAME_AND_DATA, sizeof(struct fuse_setxattr_in)},
    [FUSE_GETXATTR] = {1, ONE_NAME, sizeof(struct fuse_getxattr_in)},
    [FUSE_LISTXATTR] = {1, NOTHING, sizeof(struct fuse_getxattr_in)},
    [FUSE_REMOVEXATTR] = {1, ONE_NAME, 0},
    [FUSE_FLUSH] = {1, NOTHING, sizeof(struct fuse_flush_in)},
    [FUSE_INIT] = {1, NOTHING, 4 * sizeof(uint32_t)},
    [FUSE_OPENDIR] = {1, NOTHING, sizeof(struct fuse_open_in)},
    [FUSE_READDIR] = {1, NOTHING, sizeof(struct fuse_read_in)},
    [FUSE_RELEASEDIR] = {1, NOTHING, sizeof(struct fuse_release_in)},
    [FUSE_FSYNCDIR] = {1, NOTHING, sizeof(struct fuse_fsync_in)},
    [FUSE_ACCESS] = {1, NOTHING, sizeof(struct fuse_access_in)},
    [FUSE_CREATE] = {1, ONE_NAME, sizeof(struct fuse_create_in)},
    [FUSE_INTERRUPT] = {1, NOTHING, sizeof(struct fuse_interrupt_in)},
    [FUSE_DESTROY] = {1, NOTHING, 0},
    [FUSE_BATCH_FORGET] = {1, FORGETS, sizeof(struct fuse_batch_forget_in)},
    [FUSE_FALLOCATE] = {1, NOTHING, sizeof(struct fuse_fallocate_in)},
    [FUSE_READDIRPLUS] = {1, NOTHING, sizeof(struct fuse_read_in)},
    [FUSE_RENAME2] = {1, TWO_NAMES, sizeof(struct fuse_rename2_in)},
    [FUSE_LSEEK] = {1, NOTHING, sizeof(struct fuse_lseek_in)},
    [FUSE_COPY_FILE_RANGE] = {1, NOTHING, sizeof(struct fuse_copy_file_range_in)},
    [FUSE_TMPFILE] = {1, ONE_NAME, sizeof(struct fuse_create_in)},
    [EXCLFS_FUSE_STATX] = {1, NOTHING, sizeof(struct exclfs_statx_in)},
};

static const char *take_name(const char **at, const char *end) {
    const char *name = *at;
    const char *nul = memchr(name, 0, (size_t)(end - name));
    if (nul == NULL || nul == name) return NULL;
    *at = nul + 1;
    return name;
}

/* A name is one component: what contains a slash, or is "." or "..", must never reach an *at() system call. The
 * target of a symlink is text and may be anything, and LOOKUP asks for "." and ".." when a file handle is opened. */
static bool is_component(const char *name, bool dots_too) {
    if (strchr(name, '/') != NULL) return false;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return dots_too;
    return true;
}

int request_parse(const void *message, size_t size, struct request *request) {
    const struct fuse_in_header *header = message;
    if (size < sizeof *header || header->len != size) return EINVAL;
    *request = (struct request){.header = header};

    uint32_t opcode = header->opcode;
    if (opcode >= sizeof shapes / sizeof *shapes || !shapes[opcode].known) return ENOSYS;
    const struct shape *shape = &shapes[opcode];

    size_t extensions = (size_t)header->total_extlen * 8;
    size_t body = size - sizeof *header;
    if (extensions > body || body - extensions < shape->fixed) return EINVAL;
    const char *at = (const char *)(header + 1), *end = at + body - extensions;
    request->argument = at;
    at += shape->fixed;

    switch ((enum tail)shape->tail) {
    case NOTHING:
        return 0;
    case ONE_NAME:
        request->name = take_name(&at, end);
        break;
    case TWO_NAMES:
        request->name = take_name(&at, end);
        if (request->name != NULL) request->second_name = take_name(&at, end);
        if (request->second_name == NULL) return EINVAL;
        if (opcode != FUSE_SYMLINK && !is_component(request->second_name, false)) return EINVAL;
        break;
    case DATA: {
        const struct fuse_write_in *write = request->argument;
        request->data = at;
        request->data_size = write->size;
        return write->size <= (size_t)(end - at) ? 0 : EINVAL;
    }
    case NAME_AND_DATA: {
        const struct fuse_setxattr_in *set = request->argument;
        request->name = take_name(&at, end);
        if (request->name == NULL || set->size > (size_t)(end - at)) return EINVAL;
        request->data = at;
        request->data_size = set->size;
        return 0; /* the name of an xattr may contain anything */
    }
    case FORGETS: {
        const struct fuse_batch_forget_in *batch = request->argument;
        request->data = at;
        request->data_size = (size_t)(end - at);
        return batch->count <= request->data_size / sizeof(struct fuse_forget_one) ? 0 : EINVAL;
    }
    }
    if (request->name == NULL) return EINVAL;
    /* The name of an xattr is text, and that of a file without a name is "/": nobody looks at it. */
    if (opcode == FUSE_GETXATTR || opcode == FUSE_REMOVEXATTR || opcode == FUSE_TMPFILE) return 0;
    return is_component(request->name, opcode == FUSE_LOOKUP) ? 0 : EINVAL;
}
