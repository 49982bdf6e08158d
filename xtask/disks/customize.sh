#!/bin/sh
# Configures a system in its directory, as its installer would: `customize.sh ROOT`.
set -eu
root=$1

case $filesystem in
    btrfs) options=defaults,subvol=$subvolume ;;
    *) options=defaults ;;
esac
# As the device mapper names it: its separator is a hyphen.
device=${volume:+/dev/mapper/$(echo "$volume" | sed 's/-/--/g; s/\//-/')}
export device
echo "${device:-UUID=$uuid} / $filesystem $options 0 1" > "$root/etc/fstab"
[ "$boot" != separate ] || echo "UUID=$boot_uuid /boot ext2 defaults 0 2" >> "$root/etc/fstab"
echo debian > "$root/etc/hostname"
printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' > "$root/etc/systemd/network/80-dhcp.network"
chroot "$root" systemctl enable systemd-networkd systemd-resolved > /dev/null 2>&1

if [ -n "$upgrade" ]; then
    newest=$(chroot "$root" apt-cache depends "$kernel" | sed -n 's/^ *Depends: //p' | head -n 1)
    # Kernels of the same flavour, in order: the one before the newest.
    older=$(chroot "$root" apt-cache search --names-only '^linux-image-[0-9]' | cut -d ' ' -f 1 |
        grep -e "-${kernel#linux-image-}\$" | sort -V | grep -x -B 1 "$newest" | head -n 1)
    [ "$older" != "$newest" ]
    # A link to a server that does not run here.
    mv "$root/etc/resolv.conf" "$root/etc/resolv.conf.own"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    chroot "$root" apt-get install -y --no-install-recommends "$older"
    mkdir -p "$output/upgrade"
    chroot "$root" sh -c "cd /tmp && apt-get download $newest"
    mv "$root"/tmp/linux-image-*.deb "$output/upgrade/"
    mv "$root/etc/resolv.conf.own" "$root/etc/resolv.conf"
fi

if [ -d "$root/etc/grub.d" ]; then
    stand_ins='sbin/grub-probe bin/grub-mkrelpath'
    for program in $stand_ins; do
        mv "$root/usr/$program" "$root/usr/$program.own"
        install -m 755 "$here/${program#*/}.sh" "$root/usr/$program"
    done
    # grub-mkconfig writes `root=UUID=…` for filesystems that it sees here, or `root=` with the
    # device of a logical volume.
    mkdir -p "$root/dev/disk/by-uuid" "$root/dev/mapper" "$root/boot/grub"
    touch "$root/dev/disk/by-uuid/$uuid" ${device:+"$root$device"}
    chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg
    rm -r "$root/dev/disk" ${device:+"$root$device"}
    for program in $stand_ins; do
        mv "$root/usr/$program.own" "$root/usr/$program"
    done
fi
if [ "$boot" = unified ]; then
    kernel=$(basename "$root"/boot/vmlinuz-*)
    chroot "$root" ukify build --linux="/boot/$kernel" \
        --initrd="/boot/initrd.img-${kernel#vmlinuz-}" --cmdline="root=UUID=$uuid ro quiet" \
        --uname="${kernel#vmlinuz-}" --output=/boot/linux.efi
fi
