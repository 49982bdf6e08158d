# Describes a directory for mkfs.xfs(8): `prototype.pl DIRECTORY`.
use strict;
use warnings;

my ($top) = @ARGV;
print "/none\n0 0\n";
describe($top, "");
print "\$\n";

# Prints an entry and, of a directory, what is in it.
sub describe {
    my ($path, $name) = @_;
    my ($device, $mode, $uid, $gid) = (lstat $path)[0, 2, 4, 5];
    my $permissions = sprintf "%s%s%03o %d %d",
        ($mode & 04000 ? "u" : "-"), ($mode & 02000 ? "g" : "-"), $mode & 0777, $uid, $gid;
    if (-l _) {
        print "$name l$permissions ", readlink $path, "\n";
    } elsif (-d _) {
        print $name eq "" ? "d$permissions\n" : "$name d$permissions\n";
        opendir my $directory, $path or die "$path: $!";
        describe("$path/$_", $_) for sort grep { !/^\.\.?$/ } readdir $directory;
        print "\$\n" unless $name eq "";
    } elsif (-f _) {
        print "$name -$permissions $path\n";
    }
}
