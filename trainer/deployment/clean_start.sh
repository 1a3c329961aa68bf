# confidential-trainer, init_script: root runs this at every boot, after the data disk is mounted and before a
# container engine starts. It removes everything that an engine stored, and makes the ciphertext volume anew
# from the job's files in it. A failure ends the VM: an engine must not start with what could not be removed.
sh -eu <<'CLEAN_START' || { systemctl --force --force poweroff; exit 1; }
umask 077
docker=/var/lib/docker
engines='/var/lib/containerd /var/lib/containerd-stargz-grpc /var/lib/nerdctl /var/lib/sysbox'
volume=$docker/volumes/confidential-trainer-ciphertext

is_directory() { [ -d "$1" ] && [ ! -L "$1" ]; }

# Moves the job's files out of a directory: regular files with one of its names. Opening them authenticates their
# content, so only their kind matters here. Owner and mode are set: no set-user-ID bit, no capability.
retain() {
    for file in "$1"/*; do
        case ${file##*/} in
            *[!a-z0-9.-]* | -*) continue ;;
            *.age | end.sealed | deletion.json) ;; # data, checkpoints, result; the records of how the job ended
            *) continue ;;
        esac
        if [ -f "$file" ] && [ ! -L "$file" ]; then
            chown 0:0 "$file"
            chmod 0644 "$file"
            mv -f "$file" "$sealed/"
        fi
    done
}

is_directory "$docker"
sealed=$(mktemp -d "$docker/sealed.XXXXXXXX")
for left in "$docker"/sealed.*; do # of a boot that was interrupted
    if [ "$left" != "$sealed" ] && is_directory "$left"; then retain "$left"; fi
done
if is_directory "$docker/volumes" && is_directory "$volume" && is_directory "$volume/_data"; then
    retain "$volume/_data"
fi

find "$docker" -mindepth 1 -maxdepth 1 ! -path "$sealed" -exec rm -rf {} +
[ "$(ls -A "$docker")" = "${sealed##*/}" ]
for engine in $engines; do
    if [ -e "$engine" ] || [ -L "$engine" ]; then
        is_directory "$engine"
        find "$engine" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
        [ -z "$(ls -A "$engine")" ]
    fi
done

mkdir -m 0711 "$docker/volumes" "$volume"
chmod 0755 "$sealed"
mv "$sealed" "$volume/_data"
CLEAN_START
